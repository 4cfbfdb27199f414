#include "data/loader/entry_cache.h"

#include <utility>

namespace megafold::data {

std::shared_ptr<const Entry> EntryCache::Find(std::size_t key) {
  const auto found = slots_.find(key);
  if (found == slots_.end()) return nullptr;
  ages_.splice(ages_.begin(), ages_, found->second.age);
  return found->second.entry;
}

std::shared_ptr<const Entry> EntryCache::Get(std::size_t key, const std::function<Entry()>& build) {
  {
    const std::lock_guard lock(mutex_);
    if (auto entry = Find(key)) return entry;
  }
  auto entry = std::make_shared<const Entry>(build());
  const std::size_t bytes = entry->Bytes();
  const std::lock_guard lock(mutex_);
  if (auto other = Find(key)) return other;
  if (bytes > max_bytes_) return entry;
  while (bytes_ + bytes > max_bytes_) {
    const auto oldest = slots_.find(ages_.back());
    bytes_ -= oldest->second.bytes;
    slots_.erase(oldest);
    ages_.pop_back();
  }
  ages_.push_front(key);
  slots_.emplace(key, Slot{entry, bytes, ages_.begin()});
  bytes_ += bytes;
  return entry;
}

std::size_t EntryCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace megafold::data
