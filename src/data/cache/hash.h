// A 64-bit hash of bytes: tells contents apart, no defence against somebody who wants a collision.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "data/random.h"

namespace megafold::data {

// The hash of `bytes` after what `seed` stands for.
inline std::uint64_t HashBytes(std::string_view bytes, std::uint64_t seed) {
  std::uint64_t hash = Mix(seed, bytes.size());
  for (; !bytes.empty(); bytes.remove_prefix(bytes.size() < 8 ? bytes.size() : 8)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size() < 8 ? bytes.size() : 8);
    hash = Mix(hash ^ word);
  }
  return hash;
}

}  // namespace megafold::data
