// What the kernels that work in strips share. A strip is 32 vectors of the side that the block's
// warps divide among themselves; each warp copies its own, so that warps do not wait for each
// other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backends/cuda/attention/fragment.cuh"
#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/strips/evo_attention_params.h"

namespace megafold::cuda {

// Warps of a block for a side of `length` vectors: one for each strip, as far as shared memory
// goes.
template <typename Bytes>
int StripWarps(int length, int shared_limit, const Bytes& bytes) {
  int warps = std::min(kStripWarps, (length + kStrip - 1) / kStrip);
  while (warps > 1 && bytes(warps) > shared_limit) --warps;
  return warps;
}

// Elements between rows of float32 sums of kDim columns: fragments are written and vectors of four
// read without bank conflicts.
template <int kDim>
inline constexpr int kSumPitch = kDim % 16 == 8 ? kDim : kDim + 8;

// The block's head and row: the grid is blocks x heads x rows of all batches. kRows: there is more
// than one row; kernels for one do not even read the strides.
template <bool kRows>
__device__ __forceinline__ const char* StripBase(const void* data, std::uint32_t head,
                                                 std::int64_t row) {
  const char* base = static_cast<const char*>(data) + static_cast<std::uint64_t>(head) * blockIdx.y;
  if constexpr (kRows) base += row * blockIdx.z;
  return base;
}

// Bytes from a strip operand's first vector to another one, in one multiplication.
__device__ __forceinline__ std::uint64_t VectorOffset(int vector, std::uint32_t token) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(vector)) * token;
}

// Offset of query 0 in lse; times the keys, in dBias.
template <bool kRows>
__device__ __forceinline__ std::int64_t StripStatistic(const StripProblem& p) {
  const unsigned head =
      kRows ? blockIdx.z * static_cast<unsigned>(p.heads) + blockIdx.y : blockIdx.y;
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(head) *
                                   static_cast<unsigned>(p.queries));
}

// e^(x - m). Subtracting first keeps scores near the largest float apart from infinity.
__device__ __forceinline__ float StripExp(float x, float m) { return Exp2((x - m) * kLog2E); }

// The mask of a key, read early and turned into what it adds to the scores when that is wanted.
template <bool kRows>
struct StripMask {
  std::uint32_t bits = 0;
  bool inside;

  __device__ __forceinline__ StripMask(const StripProblem& p, int key) : inside(key < p.keys) {
    if (p.mask_kind == TermKind::kNone || !inside) return;
    const char* const row = StripBase<kRows>(p.mask, 0, p.row.mask);
    const std::uint64_t at = static_cast<std::uint64_t>(key) * p.mask_key;
    if (p.mask_kind == TermKind::kBool) {
      bits = *reinterpret_cast<const std::uint8_t*>(row + at);
    } else if (p.mask_kind == TermKind::kFloat32) {
      bits = *reinterpret_cast<const std::uint32_t*>(row + at * 4);
    } else {
      bits = *reinterpret_cast<const std::uint16_t*>(row + at * 2);
    }
  }
  // -inf past the last key.
  template <typename T>
  __device__ __forceinline__ float Term(const StripProblem& p) const {
    if (!inside) return -kInfinity;
    return p.mask_kind == TermKind::kNone ? 0.0F : MaskValue<T>(p.mask_kind, bits);
  }
};

// Row r of a tile of scores with its columns in order is this key of a strip or of 16 keys: lane t
// of four holds columns 2 t and 2 t + 1 of each 8, and so keys 4 t to 4 t + 3 of each 16.
__device__ __forceinline__ int StripOrder(int row) {
  return row / 16 * 16 + row % 8 / 2 * 4 + row / 8 % 2 * 2 + row % 2;
}

// Vectors of kDim elements in shared memory, zero up to a multiple of 16, in chunks of 16 bytes
// that are permuted so that eight rows of a chunk, and two rows, lie in different banks.
template <int kDim>
struct StripTile {
  static constexpr int kChunks = (kDim + 15) / 16 * 2;
  static constexpr int kRowBytes = kChunks == 6 ? 112 : kChunks * 16;
  static __device__ __forceinline__ int Offset(int row, int chunk) {
    const int shift = kChunks == 2 ? row / 4 % 2 : kChunks == 4 ? row / 2 % 4 : row % 8;
    return row * kRowBytes + (kChunks == 6 ? chunk : chunk ^ shift) * 16;
  }
};

// Copies vectors to a tile, eight rows at a time, a quad of lanes each.
template <int kDim>
class VectorCopy {
 public:
  // `count` vectors of `dim` elements begin at `base`.
  __device__ __forceinline__ VectorCopy(const char* base, std::uint32_t token, int count, int dim)
      : token_(token), last_(count - 1) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int chunk = i * 4 + LaneId() % 4;
      bytes_[i] = chunk * 8 < dim ? 16 : 0;
      from_[i] = base + chunk * bytes_[i];
    }
  }
  // To rows `row`, a multiple of 8, to `row` + 7; `vector` is the lane's own. What lies past the
  // last one is zero.
  __device__ __forceinline__ void Run(char* tile, int row, int vector) const {
    const std::uint64_t offset = VectorOffset(min(vector, last_), token_);
    const int g = LaneId() / 4, t = LaneId() % 4;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (Tile::kChunks - i * 4 < 4 && t >= Tile::kChunks - i * 4) continue;
      CopyAsync16(SharedAddress(tile) + row * Tile::kRowBytes + Tile::Offset(g, i * 4 + t),
                  from_[i] + offset, vector <= last_ ? bytes_[i] : 0);
    }
  }

 private:
  using Tile = StripTile<kDim>;
  static constexpr int kParts = (Tile::kChunks + 3) / 4;
  const char* from_[kParts];
  std::uint32_t token_;
  int last_, bytes_[kParts];
};

// ---- Operands of products over a vector's elements, from tiles in shared memory. ----

// Left operand: 16 rows from `row` on.
template <typename T, int kDim>
struct RowFragments {
  static constexpr int kSteps = (kDim + 15) / 16;
  typename Mma<T>::A a[kSteps];
  __device__ __forceinline__ RowFragments(const char* tile, int row) {
    const int lane = LaneId();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      LoadMatrix(a[step].r, SharedAddress(tile + StripTile<kDim>::Offset(row + lane % 16,
                                                                         step * 2 + lane / 16)));
    }
  }
};

// Right operand: columns are 16 rows of the tile, in two times eight.
template <typename T, int kDim>
struct TransposedFragments {
  static constexpr int kSteps = (kDim + 15) / 16;
  typename Mma<T>::B b[2][kSteps];
  __device__ __forceinline__ TransposedFragments(const char* tile, int row) {
    const int lane = LaneId();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      std::uint32_t r[4];
      LoadMatrix(r, SharedAddress(tile + StripTile<kDim>::Offset(row + lane / 16 * 8 + lane % 8,
                                                                 step * 2 + lane / 8 % 2)));
      b[0][step] = {{r[0], r[1]}};
      b[1][step] = {{r[2], r[3]}};
    }
  }
};

// c += rows times eight columns.
template <typename T, int kDim>
__device__ __forceinline__ void MultiplyStripVectors(float (&c)[4],
                                                     const RowFragments<T, kDim>& rows,
                                                     const TransposedFragments<T, kDim>& columns,
                                                     int half) {
#pragma unroll
  for (int step = 0; step < rows.kSteps; ++step) {
    Mma<T>::Run(c, rows.a[step], columns.b[half][step]);
  }
}

// Right operands of kOut tiles of 8 columns, over 16 rows of a tile in shared memory.
template <typename T, int kDim>
struct ColumnFragments {
  static constexpr int kOut = (kDim + 7) / 8;
  typename Mma<T>::B b[kOut + kOut % 2];

  __device__ __forceinline__ ColumnFragments(const char* tile, int row) {
    const int lane = LaneId();
#pragma unroll
    for (int n = 0; n < kOut; n += 2) {
      std::uint32_t r[4];
      LoadMatrixTransposed(
          r, SharedAddress(tile + StripTile<kDim>::Offset(row + lane % 16, n + lane / 16)));
      b[n] = {{r[0], r[1]}};
      b[n + 1] = {{r[2], r[3]}};
    }
  }
  __device__ __forceinline__ void MultiplyInto(float (&c)[kOut][4],
                                               const typename Mma<T>::A& a) const {
#pragma unroll
    for (int n = 0; n < kOut; ++n) Mma<T>::Run(c[n], a, b[n]);
  }
};

// Copies a bias whose keys do not lie on vectors, element by element, by one warp.
__device__ __forceinline__ void StageBias(const StripProblem& p, void* tile, int pitch, int rows,
                                          int columns, const char* bias, int query, int key) {
  const auto offset =
      static_cast<std::int64_t>(query) * p.bias_query + static_cast<std::int64_t>(key) * p.bias_key;
  if (p.bias_kind == TermKind::kFloat32) {
    LoadElements<4>(tile, pitch, rows, columns, bias + offset * 4, p.bias_query, p.bias_key,
                    p.queries - query, p.keys - key, LaneId(), 32);
  } else {
    LoadElements<2>(tile, pitch, rows, columns, bias + offset * 2, p.bias_query, p.bias_key,
                    p.queries - query, p.keys - key, LaneId(), 32);
  }
  __syncwarp();
}

// Stores four elements of a vector.
template <typename T, bool kRows>
__device__ __forceinline__ void StoreQuad(const StripOperand& to, std::int64_t row, int vector,
                                          int column, const float4& x, float factor) {
  char* const base = const_cast<char*>(StripBase<kRows>(to.data, to.head, row));
  *reinterpret_cast<uint2*>(base + VectorOffset(vector, to.token) + column * 2) =
      make_uint2(Pack(x.x * factor, x.y * factor, T{}), Pack(x.z * factor, x.w * factor, T{}));
}

}  // namespace megafold::cuda
