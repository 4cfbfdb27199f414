// Built entries on the disk, from one run to the next: a file per entry, <folder>/<entry>.features.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "data/features/entry.h"

namespace megafold::data {

// Thread-safe, also between processes: a file is written under another name, flushed and renamed,
// so that it is whole or absent. What is stale, torn or of another version is not there.
class FeatureCache {
 public:
  // Makes the folder when it is missing. Error (kInvalidArgument) when that fails.
  explicit FeatureCache(std::filesystem::path folder);

  // `key`: a hash of everything that the entry follows from.
  std::optional<Entry> Find(const std::string& id, std::uint64_t key) const;

  // Error (kInternal, which ends a run) when the file cannot be written.
  void Store(const std::string& id, std::uint64_t key, const Entry& entry) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace megafold::data
