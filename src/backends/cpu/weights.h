// Weights on their way into packed matrices (gemm.h).
#pragma once

#include <cstdint>

#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"
#include "megafold/core/tensor_view.h"

namespace megafold::cpu {

// A weight [outputs, features] as float32 rows: where it lies if it is float32, else a copy.
class FloatRows {
 public:
  FloatRows(const TensorView& weight, Arena& arena)
      : in_place_(weight.dtype == DType::kFloat32),
        rows_(in_place_ ? Block{weight.ptr<float>(), weight.size(0), weight.size(1),
                                weight.stride(0)}
                        : arena.NewBlock(weight.size(0), weight.size(1))) {}

  Block Load(const TensorView& weight) const {
    if (!in_place_) LoadRows(RowsOf(weight, 0), rows_);
    return rows_;
  }

 private:
  bool in_place_;
  Block rows_;
};

// PackMatrix, by all threads where the matrix is worth waking them.
inline void PackInParallel(const float* source, std::int64_t depth_stride,
                           std::int64_t column_stride, std::int64_t depth, std::int64_t columns,
                           float* packed) {
  constexpr std::int64_t kWorthwhile = std::int64_t{1} << 17;
  const Slabs parts(columns, kPackedColumnStep, depth * columns < kWorthwhile ? 1 : NumThreads());
  ParallelFor(parts.count, [&](std::int64_t part) {
    const std::int64_t begin = parts.Begin(part);
    PackMatrix(source + begin * column_stride, depth_stride, column_stride, depth,
               parts.End(part) - begin, packed + begin * depth);
  });
}

// packed = weight, or its transpose: depth runs over the columns of `weight`.
inline void PackPlain(Block weight, float* packed) {
  PackInParallel(weight.data, weight.stride, 1, weight.rows, weight.columns, packed);
}
inline void PackTransposed(Block weight, float* packed) {
  PackInParallel(weight.data, 1, weight.stride, weight.columns, weight.rows, packed);
}

}  // namespace megafold::cpu
