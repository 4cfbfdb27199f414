// How the CPU kernels divide their workspace and their rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backends/cpu/gemm.h"
#include "backends/cpu/rows.h"
#include "megafold/core/support.h"

namespace megafold::cpu {

// Hands out pieces of a workspace, each aligned to 256 bytes. Over a null base it only counts, so
// that the code that lays a workspace out also computes its size.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}

  float* Floats(std::int64_t count) {
    constexpr std::size_t kAlignment = 256;
    unsigned char* piece = base_ == nullptr ? nullptr : base_ + used_;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<float*>(piece);
  }

  // Room for a block. The stride leaves the powers of two, whose rows would share a few cache sets.
  Block NewBlock(std::int64_t rows, std::int64_t columns) {
    const std::int64_t stride = PadColumns(columns) + kColumnPadding;
    return {Floats(rows * stride), rows, columns, stride};
  }

  std::size_t used() const { return used_; }

 private:
  unsigned char* base_;
  std::size_t used_ = 0;
};

// The first `rows` rows of a block.
inline Block First(Block block, std::int64_t rows) {
  block.rows = rows;
  return block;
}

// `columns` columns of a block from `first` on.
inline Block Columns(Block block, std::int64_t first, std::int64_t columns) {
  block.data += first;
  block.columns = columns;
  return block;
}

// Whether the rows of a matrix can be used as they lie, without a copy: float32, whole vectors.
inline bool LiesReady(const TensorView& matrix) {
  return matrix.defined() && matrix.dtype == DType::kFloat32 &&
         matrix.size(1) % kColumnPadding == 0 && matrix.stride(0) >= matrix.size(1);
}

// Room for a part of a matrix: none where it is used as it lies, or where there is no matrix.
inline Block RoomFor(const TensorView& matrix, std::int64_t rows, std::int64_t columns,
                     Arena& arena) {
  if (!matrix.defined() || LiesReady(matrix)) return {nullptr, rows, columns, 0};
  return arena.NewBlock(rows, columns);
}

// The same for a left side of a sum over rows (PartialSum), which is read down its columns: rows
// far apart by a power of two would share a few cache sets and are copied.
inline Block RoomForFactor(const TensorView& matrix, std::int64_t rows, std::int64_t columns,
                           Arena& arena) {
  constexpr std::int64_t kFar = 256;
  if (matrix.stride(0) % kFar == 0) return arena.NewBlock(rows, columns);
  return RoomFor(matrix, rows, columns, arena);
}

inline StoredRows StoredFrom(const TensorView& matrix, std::int64_t row, std::int64_t column) {
  StoredRows rows = RowsOf(matrix, row);
  rows.data = static_cast<unsigned char*>(rows.data) +
              column * static_cast<std::int64_t>(SizeOf(matrix.dtype));
  return rows;
}

// The part of a matrix from (row, column) on, of the room's size, as it lies or in the room.
inline Block PartOf(const TensorView& matrix, std::int64_t row, std::int64_t column, Block room) {
  if (room.data != nullptr) return room;
  const StoredRows rows = StoredFrom(matrix, row, column);
  return {static_cast<float*>(rows.data), room.rows, room.columns, rows.stride};
}
inline Block LoadPart(const TensorView& matrix, std::int64_t row, std::int64_t column, Block room) {
  if (room.data != nullptr) LoadRows(StoredFrom(matrix, row, column), room);
  return PartOf(matrix, row, column, room);
}
inline void StorePart(const TensorView& matrix, std::int64_t row, std::int64_t column, Block room) {
  if (room.data != nullptr) StoreRows(room, StoredFrom(matrix, row, column));
}

// Slabs of rows begin at multiples of this: the smallest block, so that few rows are still shared
// out evenly.
inline constexpr std::int64_t kSlabStep = 48;

// Rows of a block whose rows hold `columns` floats in all its operands together: about half of a
// common L2 cache, and a multiple of the kernel's tile height.
constexpr std::int64_t BlockRows(std::int64_t columns) {
  constexpr std::int64_t kTileRows = 6;
  constexpr std::int64_t kFloats = 128 * 1024;
  return std::clamp<std::int64_t>(
      kFloats / std::max<std::int64_t>(columns, 1) / kTileRows * kTileRows, kSlabStep,
      32 * kTileRows);
}

// What the vectorised kernels take: every storage type but float64.
template <typename Args>
Support SupportsStorage(const Args& args) {
  if (args.x.dtype == DType::kFloat64) return Support::No("float64 runs on the reference only");
  return Support::Yes();
}

// `total` items in `count` contiguous parts, as equal as multiples of `step` allow. The division
// depends on nothing but these numbers, and sums over parts are taken in their order: results
// repeat bit for bit.
struct Slabs {
  std::int64_t total, step;
  int count;

  Slabs(std::int64_t total_items, std::int64_t step_items, int most)
      : total(total_items),
        step(step_items),
        count(static_cast<int>(
            std::clamp<std::int64_t>((total_items + step_items - 1) / step_items, 1, most))) {}

  std::int64_t Begin(std::int64_t slab) const {
    const std::int64_t steps = (total + step - 1) / step;
    return std::min(total, steps * slab / count * step);
  }
  std::int64_t End(std::int64_t slab) const { return Begin(slab + 1); }
};

}  // namespace megafold::cpu
