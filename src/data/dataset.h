// A folder of structures and alignments as training examples. docs/data.md gives the folder's
// layout and every step from file to feature, docs/features.md the arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "data/config.h"
#include "data/features/array.h"
#include "data/summary.h"

namespace megafold::data {

// Thread-safe: any number of threads may call Load and Inspect at once. What does not depend on a
// seed (parsed structure, tokens, alignments) is computed once and kept in memory, at most
// `cache_mib` of it, least recently used out first; with `feature_cache` also on the disk, from one
// run to the next.
class Dataset {
 public:
  // Lists the entries; reads no structure. Error (kNotFound) when <root>/mmcif or the component
  // dictionary does not exist, when there is no entry, or when a configured entry has no file;
  // kInvalidArgument when no crop weight is positive or `feature_cache` cannot be a folder.
  explicit Dataset(const DataConfig& config);
  ~Dataset();
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;

  const DataConfig& config() const;
  std::size_t size() const;
  // The file's name without .cif or .cif.gz. Entries are in the order of the configuration, or
  // sorted when it lists none.
  const std::string& id(std::size_t index) const;

  // One example: crop, rotation of the reference conformers and choice of alignment rows follow
  // from `seed` alone. Error (kDataCorrupt, kNotFound) names the file, the chain and what was
  // expected; the entry is then the same error for every seed.
  Example Load(std::size_t index, std::uint64_t seed) const;

  // The entry as the model sees it before the crop. Throws like Load.
  EntrySummary Inspect(std::size_t index) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace megafold::data
