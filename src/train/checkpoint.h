// Checkpoints: one folder per step below <run>/checkpoints, whole or absent.
//
//   step-000123/model.safetensors      weights and buffers
//               ema.safetensors        averaged weights
//               optimizer.safetensors  Adam's moments and step counts
//               state.json             step, batches taken, seed, version
//               config.yaml            the run's configuration, for people
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "train/safetensors.h"

namespace megafold::train {

// What a checkpoint holds. The tensors are the live ones: saving reads them, loading writes into
// them.
struct CheckpointTensors {
  NamedTensors model;
  NamedTensors ema;
  NamedTensors optimizer;
};

struct CheckpointState {
  std::int64_t step = 0;     // optimiser steps made
  std::int64_t batches = 0;  // batches taken from the data: where the loader goes on
  std::uint64_t seed = 0;    // everything random follows from it and the two counts
};

class Checkpoints {
 public:
  // `folder` is made when the first checkpoint is. Leftovers of an interrupted save are removed.
  Checkpoints(std::filesystem::path folder, int keep);

  // Writes step-<n> and then removes all but the newest `keep`. Returns the new folder.
  std::filesystem::path Save(const CheckpointState& state, const CheckpointTensors& tensors,
                             const std::string& config_yaml) const;

  // The newest checkpoint's folder.
  std::optional<std::filesystem::path> Latest() const;

 private:
  std::filesystem::path folder_;
  int keep_;
};

// Copies a checkpoint's tensors into `tensors`. A missing or torn file, and a tensor that is
// missing, extra or of another shape or dtype, is an Error that names file and tensor; nothing has
// been changed then.
CheckpointState LoadCheckpoint(const std::filesystem::path& folder,
                               const CheckpointTensors& tensors);

// The state alone.
CheckpointState ReadCheckpointState(const std::filesystem::path& folder);

// Copies the tensors of one safetensors file into `tensors`, by name; errors as above.
void LoadInto(const std::filesystem::path& file, const NamedTensors& tensors);

}  // namespace megafold::train
