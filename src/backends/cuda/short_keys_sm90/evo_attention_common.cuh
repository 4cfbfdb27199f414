// What forward and backward of the Hopper path for short keys share: warpgroups that walk over
// heads of rows ("items"), 64 queries at a time, single lanes that copy what comes next, the matrix
// units that add the mask.
#pragma once

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/vector_tile.cuh"
#include "backends/cuda/short_keys/evo_attention_common.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_params.h"

namespace megafold::cuda {

// A tile of vectors: 64 rows of 64 bytes.
inline constexpr int kVectorPitch = kHopperShortDim * 2;
inline constexpr int kVectorTileBytes = kHopperShortQueries * kVectorPitch;
inline constexpr int kKeysBytes = 2 * 2 * kVectorTileBytes;  // K, then V, of 128 keys
inline constexpr int kRowScores = kHopperShortQueries;       // that a thread holds of 64 x 128
inline constexpr int kVectorValues = kHopperShortDim / 2;    // that it holds of 64 x 32
using VectorDescriptor = TileDescriptor<kVectorPitch>;

// A block's walk over its items. Places are added up: divisions would take one thread hundreds of
// cycles while all others wait for it. Where it begins is mostly so small that float32 divides it.
struct ItemWalk {
  int item;
  int head;  // counted over all rows
  ItemPlace at;

  __device__ __forceinline__ explicit ItemWalk(const HopperShortParams& p, int first)
      : item(first), head(Quotient(item, p.parts)) {
    const auto batch_rows = static_cast<int>(p.batch_rows);
    const int row = Quotient(head, p.heads);
    const int batch = Quotient(row, batch_rows);
    at = {batch, row - batch * batch_rows, head - row * p.heads, item - head * p.parts};
  }
  // a / b, rounded down; float32 divides what is below 2^20.
  static __device__ __forceinline__ int Quotient(int a, int b) {
    if (a >= 1 << 20) return a / b;
    return static_cast<int>(__fdividef(static_cast<float>(a) + 0.5F, static_cast<float>(b)));
  }
  __device__ __forceinline__ bool Inside(const HopperShortParams& p) const {
    return item < p.items;
  }
  __device__ __forceinline__ void Advance(const HopperShortParams& p) {
    item += static_cast<int>(gridDim.x);
    head += p.head_stride;
    at.part += p.stride.part;
    at.head += p.stride.head;
    at.row += p.stride.row;
    at.batch += p.stride.batch;
    if (at.part >= p.parts) {
      at.part -= p.parts;
      ++at.head;
      ++head;
    }
    if (at.head >= p.heads) {
      at.head -= p.heads;
      ++at.row;
    }
    if (at.row >= static_cast<int>(p.batch_rows)) {
      at.row -= static_cast<int>(p.batch_rows);
      ++at.batch;
    }
  }
  // The log-sum-exp of the item's head of a row.
  __device__ __forceinline__ float* Lse(const HopperShortParams& p) const {
    return p.lse + static_cast<std::int64_t>(head) * p.queries;
  }
};

// Copies of an item's K and V, by one thread.
__device__ __forceinline__ void CopyShortKeys(const HopperShortParams& p, const ItemPlace& at,
                                              std::uint32_t stage, std::uint32_t barrier) {
  CopyTensor(stage, p.k_map, 0, 0, at.head, at.row, at.batch, barrier);
  CopyTensor(stage + kKeysBytes / 2, p.v_map, 0, 0, at.head, at.row, at.batch, barrier);
}

// The bits of the mask's term of an item's key; what they mean is worked out where that is needed.
template <typename T>
__device__ __forceinline__ std::uint32_t ItemMaskBits(const HopperShortParams& p,
                                                      const ItemPlace& at, int key) {
  const int bytes = p.mask.kind == TermKind::kBool      ? 1
                    : p.mask.kind == TermKind::kFloat32 ? 4
                                                        : static_cast<int>(sizeof(T));
  return MaskBitsOf<T>(p,
                       static_cast<const char*>(p.mask.data) +
                           (at.batch * p.mask.batch + at.row * p.mask.row) * bytes,
                       key);
}

// The matrix units add the terms of an item's keys: a key has eight more columns, its term in three
// bfloat16 parts, a query 1 in those three. What hides a key is a large number, not -inf: the
// eight columns are read a second time, times 0.
inline constexpr int kTermBytes = kHopperShortKeys * 16;
inline constexpr float kShortHidden = -1e30F;

template <typename T>
__device__ __forceinline__ void WriteTerm(std::uint32_t terms, const HopperShortParams& p, int key,
                                          std::uint32_t bits, float inverse_scale) {
  const float term =
      fminf(fmaxf(MaskStart<T>(p, bits, key, inverse_scale), kShortHidden), -kShortHidden);
  const float high = __bfloat162float(__float2bfloat16_rn(term));
  const float middle = __bfloat162float(__float2bfloat16_rn(term - high));
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %3};" ::"r"(terms + key * 16),
               "r"(Pack(high, middle, __nv_bfloat16{})),
               "r"(Pack(term - high - middle, 0.0F, __nv_bfloat16{})), "r"(0)
               : "memory");
  FenceAsyncProxy();
}

// s = the terms of the keys, for 64 queries; queued.
__device__ __forceinline__ void StartScores(float (&s)[kRowScores], std::uint32_t terms) {
  constexpr std::uint32_t kOne = 0x3F80;
  const int lane = LaneId() % 4;
  const std::uint32_t ones = lane == 0 ? kOne << 16 | kOne : lane == 1 ? kOne : 0;
  const std::uint32_t a[4] = {ones, ones, 0, 0};
  Wgmma<__nv_bfloat16, kHopperShortKeys>::Run<Order::kKMajor>(s, a, HalvesDescriptor(terms, terms),
                                                              false);
}

}  // namespace megafold::cuda
