// Single-threaded fp32 matrix product, the arithmetic core of LayerNormLinear, Transition and
// TriangleMultiplication.
//
// Why not a BLAS: these operators multiply blocks of a few hundred rows that were just normalised
// or gated and still lie in the L2 cache, from inside their own threads. A library call would bring
// its own thread pool (two of them once libtorch is in the process) and its own copies of blocks
// that need none. The kernel keeps a tile of 6 rows by up to four vectors in registers; six row
// pointers fit the integer registers, so the left operand is read where it lies, row- or
// depth-major, and only weights are packed, once a call.
//
// Thread safety: all functions are pure; callers run them from as many threads as they like.
#pragma once

#include <cstdint>

namespace megafold::cpu {

// Every matrix of the right side and of the result is padded to a multiple of this many columns:
// the kernel works in whole vectors. The padding of the right side must be readable; what it holds
// only reaches the result's padding.
inline constexpr std::int64_t kColumnPadding = 16;

// Column ranges of a packed matrix may start at multiples of this.
inline constexpr std::int64_t kPackedColumnStep = 64;

constexpr std::int64_t PadColumns(std::int64_t columns) {
  return (columns + kColumnPadding - 1) / kColumnPadding * kColumnPadding;
}

// Left side, `rows` by `depth`: element (row, p) at data[row * row_stride + p * depth_stride]; one
// stride must be 1.
struct GemmLhs {
  const float* data;
  std::int64_t row_stride, depth_stride;
};

// The matrix stored row by row, and the transpose of a matrix stored row by row.
inline GemmLhs RowMajor(const float* data, std::int64_t stride) { return {data, stride, 1}; }
inline GemmLhs Transposed(const float* data, std::int64_t stride) { return {data, 1, stride}; }

// Right side, `depth` by `columns`: rows of a plain matrix, or a part of a packed one.
struct GemmRhs {
  const float* data;
  std::int64_t stride;        // between rows; 0 when packed
  std::int64_t packed_depth;  // depth of the whole packed matrix
  std::int64_t first_depth;   // where the part begins
};

inline GemmRhs Rows(const float* data, std::int64_t stride) { return {data, stride, 0, 0}; }

// Columns from `first_column` (a multiple of kPackedColumnStep) and depths from `first_depth` of a
// packed matrix. The part must reach the last column or have a multiple of kPackedColumnStep of
// them.
inline GemmRhs Packed(const float* data, std::int64_t packed_depth, std::int64_t first_column = 0,
                      std::int64_t first_depth = 0) {
  return {data + first_column * packed_depth, 0, packed_depth, first_depth};
}

constexpr std::int64_t PackedSize(std::int64_t depth, std::int64_t columns) {
  return depth * PadColumns(columns);
}

// packed (p, n) = source[p * depth_stride + n * column_stride]; writes PackedSize(depth, columns)
// floats.
void PackMatrix(const float* source, std::int64_t depth_stride, std::int64_t column_stride,
                std::int64_t depth, std::int64_t columns, float* packed);

struct GemmShape {
  std::int64_t rows, columns, depth;
};

// A block of the result's shape that is read or written soon after: each tile of the product asks
// for its part of it, a line at a time between its sums. Asked for all at once, 24 lines take every
// place that a core has for lines on their way, and what the product itself misses waits.
struct GemmSoon {
  const float* data = nullptr;
  std::int64_t stride = 0;
};

// c[row * c_stride + n] = init[row * init_stride + n] + sum_p a(row, p) b(p, n); a null `init`
// counts as zero. `init` may be c itself (accumulate; c's padding may then stay as it is) or one
// row with stride 0 (a bias). c and init are padded as described above. Without `soon` the lines of
// `init` are asked for.
void Gemm(GemmShape shape, GemmLhs a, GemmRhs b, const float* init, std::int64_t init_stride,
          float* c, std::int64_t c_stride, GemmSoon soon = {});

// out[c * out_stride + r] = in[r * in_stride + c] for r < rows, c < columns.
void Transpose(const float* in, std::int64_t in_stride, std::int64_t rows, std::int64_t columns,
               float* out, std::int64_t out_stride);

}  // namespace megafold::cpu
