// Rows that a later step reads or writes, brought into the L2 cache a few at a time while the present step
// computes. Rows of a few features lie apart in a tensor with several heads, where the processor
// does not see them coming: unasked, they are waited for.
#pragma once

#include <array>
#include <cstdint>

#include "backends/cpu/rows.h"

namespace megafold::cpu {

class Ahead {
 public:
  static constexpr std::size_t kMostTensors = 8;

  // Forgets what was added.
  void Clear();
  // `count` rows of `columns` elements from `rows` on, to read or to write.
  void Add(StoredRows rows, std::int64_t count, std::int64_t columns, bool write = false);
  // Divides the rows over so many calls of Step().
  void Start(std::int64_t steps);
  // Asks for the next share of them.
  void Step();

 private:
  struct Part {
    const char* row;
    std::int64_t stride, bytes, left;
    bool write;
  };

  std::array<Part, kMostTensors> parts_{};
  std::size_t count_ = 0, current_ = 0;
  std::int64_t rows_ = 0, share_ = 0;
};

}  // namespace megafold::cpu
