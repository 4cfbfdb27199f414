// The training loop over any Trainable.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/adam.h"
#include "train/batch_source.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/ema.h"
#include "train/trainable.h"

namespace megafold::train {

struct RunOptions {
  std::filesystem::path folder;  // logs and checkpoints go here; made when missing
  bool resume = false;           // go on from the folder's newest checkpoint
  std::string config_yaml;       // kept beside every checkpoint
  bool terminal = false;         // `out` is a terminal: draw a bar
};

struct RunSummary {
  std::int64_t first_step = 0;  // before this process
  std::int64_t last_step = 0;
  double seconds = 0;       // in steps, checkpoints left out
  double wait_seconds = 0;  // of these, waiting for data
  std::int64_t peak_host_bytes = 0;
  std::int64_t peak_device_bytes = 0;  // 0 on the CPU
  double first_loss = 0;               // means over the first and last tenth of these steps
  double last_loss = 0;
  int stop_signal = 0;  // the signal that ended the run early, or 0
  std::vector<SkippedEntry> skipped;
  std::filesystem::path checkpoint;
  std::filesystem::path csv;
  std::filesystem::path folder;
  std::string Text() const;
};

// The seed of everything random in batch number `batch` of a run.
std::uint64_t BatchSeed(std::uint64_t run_seed, std::int64_t batch);

// Owns the optimiser, the averaged weights, the logs and the checkpoints of one run. Not
// thread-safe; while Run() is at work it owns SIGINT and SIGTERM.
class Trainer {
 public:
  // Moves the module to the configured device and, to resume, loads the newest checkpoint.
  // Errors: kInvalidArgument for a folder that already holds a run (without `resume`) or holds none
  // (with it), kDataCorrupt for a checkpoint that does not fit. `out` gets the progress.
  Trainer(const TrainConfig& config, Trainable& model, RunOptions options, std::ostream& out);
  ~Trainer();

  // Trains up to config.steps, or until Ctrl-C, and writes a last checkpoint. A loss or gradient
  // that is not finite throws an Error that names step and entries; the weights stay those of the
  // step before, and the checkpoints those already written.
  RunSummary Run(const BatchSourceFactory& make_source);

  // The model's sample for a batch, with the averaged weights where there are any: [B, A, 3] on the
  // CPU.
  at::Tensor Predict(const TensorDict& batch, std::uint64_t seed);

  std::int64_t step() const { return state_.step; }
  std::int64_t parameter_count() const;
  const at::Device& device() const { return device_; }

 private:
  struct StepResult;
  struct Logs;
  // A batch on the device.
  struct DeviceBatch {
    std::vector<std::string> entry_ids;
    TensorDict features;
    double wait_seconds = 0;  // that the host was blocked for it
  };

  CheckpointTensors Tensors();
  void OpenFolder();
  DeviceBatch Fetch(BatchSource& source);
  StepResult Step(BatchSource& source);
  void CheckFinite(const StepResult& result);
  std::filesystem::path Save();

  TrainConfig config_;
  Trainable& model_;
  RunOptions options_;
  std::ostream& out_;
  at::Device device_;
  std::unique_ptr<Adam> adam_;
  std::unique_ptr<Ema> ema_;  // null when ema_decay is 0
  Checkpoints checkpoints_;
  CheckpointState state_;
  std::optional<DeviceBatch> ahead_;  // the next batch, on its way to an accelerator
};

}  // namespace megafold::train
