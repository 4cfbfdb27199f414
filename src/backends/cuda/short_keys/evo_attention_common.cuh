// What forward and backward of EvoAttention with short keys share: the walk over rows, the copies
// of a row's operands, terms of the scores, stores.
//
// Accumulators of scores begin with the row's terms in units of <q, k>: (bias + mask) / scale.
#pragma once

#include "backends/cuda/attention/fragment.cuh"
#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/short_keys/evo_attention_params.h"

namespace megafold::cuda {

// A term over the scale. Models write -1e9 or the lowest float for -inf; beside such a number float32
// keeps nothing of <q, k>.
__device__ __forceinline__ float ScaledTerm(float term, float inverse_scale) {
  constexpr float kMasked = -90000.0F;
  constexpr float kLimit = 1e38F;
  return term < kMasked ? -kInfinity : fminf(term * inverse_scale, kLimit);
}

// A tile of queries of a row, in the order in which a block takes them.
struct StepCursor {
  RowIndex at;
  int tile = 0;
  int parity = 0;  // of the row: which of the two stages of K and V is its

  __device__ StepCursor(std::int64_t row, std::int64_t batch_rows)
      : at(row / batch_rows, row % batch_rows) {}
  __device__ __forceinline__ std::int64_t Group(const ShortKeysParams& p) const {
    return p.groups == 1 ? 0 : at.batch;
  }
};

// Where the operands of a row begin. A lane of each warp keeps the address of one operand and hands
// it out, so that addresses cost a warp one addition a row and not one for each operand.
class RowPointers {
 public:
  enum Lane { kK, kV, kQ, kDout, kMask, kLse, kOut = 16, kOutLse, kDq, kDk, kDv };

  __device__ __forceinline__ RowPointers(const ShortKeysParams& p, const RowIndex& at, int head,
                                         int element_bytes) {
    Choose(p, at, head, element_bytes);
  }

  template <typename T>
  __device__ __forceinline__ T* Get(Lane lane) const {
    return reinterpret_cast<T*>(__shfl_sync(0xFFFFFFFFU, address_, lane));
  }

  // To the next tile of queries, for what is read or what is written; the addresses move with rows.
  __device__ __forceinline__ void Advance(const ShortKeysParams& p, StepCursor& cursor, int tiles,
                                          bool written) {
    if (++cursor.tile < tiles) return;
    cursor.tile = 0;
    cursor.parity ^= 1;
    const bool wraps = ++cursor.at.row == p.batch_rows;
    if (wraps) {
      cursor.at.row = 0;
      ++cursor.at.batch;
    }
    if ((LaneId() >= kOut) == written) address_ += wraps ? wrap_ : step_;
  }

 private:
  __device__ __forceinline__ void Choose(const ShortKeysParams& p, const RowIndex& at, int head,
                                         int element_bytes) {
    const auto operand = [&](const AttentionOperand& x) {
      Set(p, x.data, at, x.batch, x.row, head * x.head, element_bytes);
    };
    switch (LaneId()) {
      case kK:
        return operand(p.k);
      case kV:
        return operand(p.v);
      case kQ:
        return operand(p.q);
      case kDout:
        return operand(p.dout);
      case kMask:
        return Set(p, p.mask.data, at, p.mask.batch, p.mask.row, 0,
                   p.mask.kind == TermKind::kBool      ? 1
                   : p.mask.kind == TermKind::kFloat32 ? 4
                                                       : element_bytes);
      case kOut:
        return operand(p.out);
      case kDq:
        return operand(p.dq);
      case kDk:
        return operand(p.dk);
      case kDv:
        return operand(p.dv);
      default: {
        const std::int64_t row = static_cast<std::int64_t>(p.heads) * p.queries;
        Set(p, p.lse, at, row * p.batch_rows, row, static_cast<std::int64_t>(head) * p.queries, 4);
      }
    }
  }

  __device__ __forceinline__ void Set(const ShortKeysParams& p, const void* data,
                                      const RowIndex& at, std::int64_t batch, std::int64_t row,
                                      std::int64_t start, int bytes) {
    address_ = reinterpret_cast<unsigned long long>(data) +
               (at.batch * batch + at.row * row + start) * bytes;
    step_ = row * bytes;
    wrap_ = (batch - (p.batch_rows - 1) * row) * bytes;
  }

  unsigned long long address_ = 0;
  std::int64_t step_ = 0, wrap_ = 0;
};

#ifndef SHORT_PREFETCH
#define SHORT_PREFETCH ".L2::128B"
#endif
// A copy of 16 bytes, or 16 zeros. L2 fetches the neighbours too: the next head's vectors, which
// another block of the team asks for at about the same time.
__device__ __forceinline__ void CopyVector(std::uint32_t to, const void* from, bool inside) {
  asm volatile(
      "{\n"
      ".reg .pred outside;\n"
      "setp.eq.u32 outside, %2, 0;\n"
      "cp.async.cg.shared.global" SHORT_PREFETCH
      " [%0], [%1], 16, outside;\n"
      "}\n" ::"r"(to),
      "l"(from), "r"(static_cast<std::uint32_t>(inside))
      : "memory");
}

// Copies kRows vectors from a row, `count` of which are inside, to a tile.
template <typename T, int kRows, int kDim, int kThreads>
__device__ __forceinline__ void CopyTile(void* tile, const T* source, std::int64_t token, int count,
                                         int dim) {
  constexpr int kVectors = kDim / 8;
  constexpr int kRowsPerPass = kThreads / kVectors;
  constexpr int kPitch = kTilePitch<T, kDim>;
  const int thread = static_cast<int>(threadIdx.x);
  const int first = thread / kVectors;
  const int column = thread % kVectors * 8;
  if (kThreads % kVectors != 0 && first >= kRowsPerPass) return;
  const char* from = reinterpret_cast<const char*>(source + first * token + column);
  const std::uint32_t to = SharedAddress(tile) + (first * kPitch + column) * 2;
  const bool inside = column < dim;
#pragma unroll
  for (int pass = 0; pass * kRowsPerPass < kRows; ++pass) {
    const int row = first + pass * kRowsPerPass;
    if ((pass + 1) * kRowsPerPass > kRows && row >= kRows) break;
    CopyVector(to + pass * kRowsPerPass * kPitch * 2, from, inside && row < count);
    from += token * (kRowsPerPass * 2);
  }
}

// The bits of the mask's term of `key`; `row` is where the row's mask begins.
template <typename T>
__device__ __forceinline__ std::uint32_t MaskBitsOf(const ShortKeysParams& p, const void* row,
                                                    int key) {
  const std::int64_t offset = key * p.mask.key;
  if (key >= p.keys) return 0;
  if (p.mask.kind == TermKind::kBool) return static_cast<const std::uint8_t*>(row)[offset];
  if (p.mask.kind == TermKind::kFloat32) return static_cast<const std::uint32_t*>(row)[offset];
  if (p.mask.kind == TermKind::kStorage) return static_cast<const std::uint16_t*>(row)[offset];
  return 0;
}

// What starts a score's accumulator: the mask's term over the scale, -inf past the last key.
template <typename T>
__device__ __forceinline__ float MaskStart(const ShortKeysParams& p, std::uint32_t bits, int key,
                                           float inverse_scale) {
  if (key >= p.keys) return -kInfinity;
  return ScaledTerm(MaskValue<T>(p.mask.kind, bits), inverse_scale);
}

// The bias over the scale; 0 outside the tensor.
template <typename T>
__device__ __forceinline__ float BiasStart(const ShortKeysParams& p, std::int64_t base, int query,
                                           int key, float inverse_scale) {
  if (query >= p.queries || key >= p.keys) return 0.0F;
  return ScaledTerm(BiasTerm<T>(p, base + query * p.bias.query + key * p.bias.key), inverse_scale);
}

// Writes fragments of 16 rows and kNTiles * 8 columns, as 16-bit numbers, to shared memory.
template <typename T, int kNTiles, int kPitch>
__device__ __forceinline__ void StoreFragments(T* shared, const float (&c)[kNTiles][4], float top,
                                               float bottom) {
  const int lane = LaneId();
#if __CUDA_ARCH__ >= 900
#pragma unroll
  for (int n = 0; n < kNTiles; n += 2) {
    StoreMatrix(SharedAddress(shared + lane % 16 * kPitch + lane / 16 * 8 + n * 8),
                Pack(c[n][0] * top, c[n][1] * top, T{}),
                Pack(c[n][2] * bottom, c[n][3] * bottom, T{}),
                Pack(c[n + 1][0] * top, c[n + 1][1] * top, T{}),
                Pack(c[n + 1][2] * bottom, c[n + 1][3] * bottom, T{}));
  }
#else
  auto* const pairs = reinterpret_cast<std::uint32_t*>(shared + lane / 4 * kPitch + lane % 4 * 2);
#pragma unroll
  for (int n = 0; n < kNTiles; ++n) {
    pairs[n * 4] = Pack(c[n][0] * top, c[n][1] * top, T{});
    pairs[8 * kPitch / 2 + n * 4] = Pack(c[n][2] * bottom, c[n][3] * bottom, T{});
  }
#endif
}

// Stores a warp's 16 rows of accumulators, times a factor for rows 0 to 7 and 8 to 15, in whole
// vectors, by way of 16 rows of shared memory that no other warp reads.
template <typename T, int kDim>
__device__ __forceinline__ void StoreThroughShared(T* shared, T* to, std::int64_t stride, int rows,
                                                   int columns, const float (&c)[kDim / 8][4],
                                                   float top, float bottom) {
  constexpr int kPitch = kTilePitch<T, kDim>;
  constexpr int kVectors = kDim / 8;
  const int lane = LaneId();
  __syncwarp();
  StoreFragments<T, kVectors, kPitch>(shared, c, top, bottom);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kVectors / 2; ++i) {
    const int row = (lane + i * 32) / kVectors;
    const int column = (lane + i * 32) % kVectors * 8;
    if (row >= rows || column >= columns) continue;
    *reinterpret_cast<uint4*>(to + row * stride + column) =
        *reinterpret_cast<const uint4*>(shared + row * kPitch + column);
  }
}

}  // namespace megafold::cuda
