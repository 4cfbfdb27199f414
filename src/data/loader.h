// Batches of examples, prepared by background threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace megafold::data {

// Examples under a leading batch dimension, each size padded to the largest of the batch. Padding
// is 0 (class 31, the gap, in `msa` and `template_restype`), and every mask is 0 there.
struct Batch {
  std::vector<std::string> entry_ids;
  std::map<std::string, Array> features;
};

// Error (kInvalidArgument) when there is no example or they differ in names or types.
Batch Collate(std::span<const Example> examples);

struct SkippedEntry {
  std::string entry_id;
  std::string reason;      // the one line of the Error
  std::int64_t times = 0;  // how often it was drawn
};

// Step k yields the same batch for the same (dataset, seed, batch size), however many threads work
// and wherever the run began; a resumed run passes its next step as `first_step`. Every entry is
// drawn once per pass over the dataset, in an order shuffled anew for each pass. An entry that
// cannot be read is skipped: another one is drawn in its place.
class Loader {
 public:
  // The dataset must outlive the loader; its configuration sets threads and prefetch. Error
  // (kInvalidArgument) for a batch size below 1.
  Loader(const Dataset& dataset, int batch_size, std::uint64_t seed, std::uint64_t first_step = 0);
  // Waits for the examples being prepared.
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next step's batch; blocks until it is ready. Error (kDataCorrupt) when no entry of the
  // dataset can be read, with the first reason. One thread calls it.
  Batch Next();

  std::uint64_t next_step() const;
  double wait_seconds() const;                // time spent blocked in Next
  std::vector<SkippedEntry> skipped() const;  // so far, by entry id

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace megafold::data
