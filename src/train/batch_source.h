// Where the trainer's batches come from: the data pipeline (loader_source.h), or a test's own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "train/trainable.h"

namespace megafold::train {

struct TrainBatch {
  std::vector<std::string> entry_ids;
  TensorDict features;  // on the CPU
};

struct SkippedEntry {
  std::string entry_id;
  std::string reason;
  std::int64_t times = 0;  // how often it came up
};

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Blocks until the next batch is ready.
  virtual TrainBatch Next() = 0;
  // Entries that could not be used since this source was made.
  virtual std::vector<SkippedEntry> Skipped() const = 0;
};

// Makes the source whose first batch is number `first_batch` of the run. Batch k of a run is the
// same whatever number the source began with; that is what lets a run resume.
using BatchSourceFactory = std::function<std::unique_ptr<BatchSource>(std::int64_t first_batch)>;

}  // namespace megafold::train
