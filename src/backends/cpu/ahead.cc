#include "backends/cpu/ahead.h"

namespace megafold::cpu {

void Ahead::Clear() {
  count_ = current_ = 0;
  rows_ = share_ = 0;
}

void Ahead::Add(StoredRows rows, std::int64_t count, std::int64_t columns, bool write) {
  if (count == 0 || columns == 0) return;
  const auto size = static_cast<std::int64_t>(SizeOf(rows.dtype));
  parts_.at(count_++) = {static_cast<const char*>(rows.data), rows.stride * size, columns * size,
                         count, write};
  rows_ += count;
}

void Ahead::Start(std::int64_t steps) { share_ = (rows_ + steps - 1) / steps; }

void Ahead::Step() {
  constexpr std::int64_t kLine = 64;
  constexpr int kIntoL2 = 2;
  for (std::int64_t n = 0; n < share_ && current_ < count_; ++n) {
    Part& part = parts_[current_];
    for (std::int64_t at = 0; at < part.bytes; at += kLine) {
      if (part.write) {
        __builtin_prefetch(part.row + at, 1, kIntoL2);
      } else {
        __builtin_prefetch(part.row + at, 0, kIntoL2);
      }
    }
    part.row += part.stride;
    if (--part.left == 0) ++current_;
  }
}

}  // namespace megafold::cpu
