// Built entries in memory, least recently used out first.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "data/features/entry.h"

namespace megafold::data {

// Thread-safe. Two threads that miss the same entry at once both build it; one result is kept.
class EntryCache {
 public:
  explicit EntryCache(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  // The entry of `key`, from `build` when it is not there. An entry larger than the whole cache is
  // returned and not kept; what `build` throws passes through.
  std::shared_ptr<const Entry> Get(std::size_t key, const std::function<Entry()>& build);

  std::size_t bytes() const;

 private:
  struct Slot {
    std::shared_ptr<const Entry> entry;
    std::size_t bytes = 0;
    std::list<std::size_t>::iterator age;
  };

  std::shared_ptr<const Entry> Find(std::size_t key);

  mutable std::mutex mutex_;
  std::size_t max_bytes_;
  std::size_t bytes_ = 0;
  std::list<std::size_t> ages_;  // keys, last used first
  std::unordered_map<std::size_t, Slot> slots_;
};

}  // namespace megafold::data
