// Random numbers that are the same on every platform and standard library.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace megafold::data {

// Names the uses of randomness, so that one more draw in one place shifts no other place.
enum class RandomUse : std::uint64_t { kCrop = 1, kConformer, kMsaRows, kPassOrder, kReplacement };

// One step of SplitMix64: a bijection that scatters nearby inputs.
constexpr std::uint64_t Mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

constexpr std::uint64_t Mix(std::uint64_t a, std::uint64_t b) { return Mix(Mix(a) ^ b); }

// SplitMix64. Seeded by (seed, use, index): streams of different uses or indices are unrelated.
class Random {
 public:
  Random(std::uint64_t seed, RandomUse use, std::uint64_t index = 0)
      : state_(Mix(Mix(seed, static_cast<std::uint64_t>(use)), index)) {}

  std::uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15ULL;
    return Mix(state_);
  }

  // Uniform in [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

  // Uniform in 0 .. count - 1; count at least 1. Draws again where a remainder would favour some.
  std::uint64_t Below(std::uint64_t count) {
    const std::uint64_t unfair = (~std::uint64_t{0} - count + 1) % count;
    std::uint64_t value = Next();
    while (value < unfair) value = Next();
    return value % count;
  }

  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[Below(i)]);
  }

 private:
  std::uint64_t state_;
};

}  // namespace megafold::data
