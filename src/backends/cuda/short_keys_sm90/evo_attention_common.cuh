// What forward and backward of the Hopper path for short keys share: a block is one warpgroup that
// walks over heads of rows ("items"), 64 queries at a time. Single lanes copy what comes next and
// store: what these do, all others wait for.
#pragma once

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/short_keys/evo_attention_common.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_params.h"

namespace megafold::cuda {

inline constexpr int kHopperShortThreads = 128;
// A tile of vectors: 64 rows of 64 bytes.
inline constexpr int kVectorPitch = kHopperShortDim * 2;
inline constexpr int kVectorTileBytes = kHopperShortQueries * kVectorPitch;
inline constexpr int kKeysBytes = 2 * 2 * kVectorTileBytes;  // K, then V, of 128 keys
inline constexpr int kRowScores = kHopperShortQueries;       // that a thread holds of 64 x 128
inline constexpr int kVectorValues = kHopperShortDim / 2;    // that it holds of 64 x 32
using VectorDescriptor = TileDescriptor<kVectorPitch>;

// A block's walk over its items. Places are added up: divisions would take one thread hundreds of
// cycles while all others wait for it.
struct ItemWalk {
  int item;
  ItemPlace at;

  __device__ __forceinline__ explicit ItemWalk(const HopperShortParams& p)
      : item(static_cast<int>(blockIdx.x)) {
    const int head = item / p.parts;
    const int row = head / p.heads;
    const auto batch_rows = static_cast<int>(p.batch_rows);
    at = {row / batch_rows, row % batch_rows, head % p.heads, item % p.parts};
  }
  __device__ __forceinline__ bool Inside(const HopperShortParams& p) const {
    return item < p.items;
  }
  __device__ __forceinline__ void Advance(const HopperShortParams& p) {
    item += static_cast<int>(gridDim.x);
    at.part += p.stride.part;
    at.head += p.stride.head;
    at.row += p.stride.row;
    at.batch += p.stride.batch;
    if (at.part >= p.parts) {
      at.part -= p.parts;
      ++at.head;
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
    const std::int64_t row = at.batch * p.batch_rows + at.row;
    return p.lse + (row * p.heads + at.head) * p.queries;
  }
};

// Copies of an item's K and V, by one thread.
__device__ __forceinline__ void CopyKeys(const HopperShortParams& p, const ItemPlace& at,
                                         std::uint32_t stage, std::uint32_t barrier) {
  CopyTensor(stage, p.k_map, 0, 0, at.head, at.row, at.batch, barrier);
  CopyTensor(stage + kKeysBytes / 2, p.v_map, 0, 0, at.head, at.row, at.batch, barrier);
}

// The mask's terms of this thread's key.
class KeyMask {
 public:
  __device__ __forceinline__ KeyMask(const HopperShortParams& p, int element_bytes) {
    bytes_ = p.mask.kind == TermKind::kBool      ? 1
             : p.mask.kind == TermKind::kFloat32 ? 4
                                                 : element_bytes;
    mine_ = static_cast<const char*>(p.mask.data) +
            min(static_cast<int>(threadIdx.x), p.keys - 1) * p.mask.key * bytes_;
  }
  // Its bits for an item; what they mean is worked out where they are needed.
  __device__ __forceinline__ std::uint32_t Bits(const HopperShortParams& p,
                                                const ItemWalk& item) const {
    if (p.mask.kind == TermKind::kNone || !item.Inside(p)) return 0;
    const char* from = mine_ + (item.at.batch * p.mask.batch + item.at.row * p.mask.row) * bytes_;
    if (p.mask.kind == TermKind::kBool) return *reinterpret_cast<const std::uint8_t*>(from);
    if (p.mask.kind == TermKind::kFloat32) return *reinterpret_cast<const std::uint32_t*>(from);
    return *reinterpret_cast<const std::uint16_t*>(from);
  }

 private:
  const char* mine_;
  int bytes_;
};

// The terms of an item's keys in shared memory: those that a lane of a quad needs lie side by side.
inline constexpr int kTermPitch = kHopperShortKeys / 4 + 4;  // other banks for each lane
inline constexpr int kTermBytes = 4 * kTermPitch * 4;

template <typename T>
__device__ __forceinline__ void WriteTerm(float* terms, const HopperShortParams& p,
                                          std::uint32_t bits, float inverse_scale) {
  const int key = static_cast<int>(threadIdx.x);
  terms[key % 8 / 2 * kTermPitch + key / 8 * 2 + key % 2] =
      MaskStart<T>(p, bits, key, inverse_scale);
}

// s (+)= A B^T for 64 queries and 128 keys; the products are queued.
template <typename T>
__device__ __forceinline__ void MultiplyRows(float (&s)[kRowScores], std::uint32_t queries,
                                             std::uint32_t keys, bool accumulate) {
  const std::uint32_t left = VectorDescriptor::Low(queries);
  const std::uint32_t right = VectorDescriptor::Low(keys);
#pragma unroll
  for (int k = 0; k < kHopperShortDim / 16; ++k) {
    Wgmma<T, kHopperShortKeys>::template Run<Order::kKMajor>(
        s, VectorDescriptor::FromLow(left + k * VectorDescriptor::kStepKMajor),
        VectorDescriptor::FromLow(right + k * VectorDescriptor::kStepKMajor), accumulate || k > 0);
  }
}

// Scores begin with the terms of their keys.
__device__ __forceinline__ void StartScores(float (&s)[kRowScores], const float* terms) {
  const auto* const mine = reinterpret_cast<const float4*>(terms + threadIdx.x % 4 * kTermPitch);
#pragma unroll
  for (int n = 0; n < kHopperShortKeys / 16; ++n) {
    const float4 two = mine[n];  // pairs of columns
    s[8 * n] = s[8 * n + 2] = two.x;
    s[8 * n + 1] = s[8 * n + 3] = two.y;
    s[8 * n + 4] = s[8 * n + 6] = two.z;
    s[8 * n + 5] = s[8 * n + 7] = two.w;
  }
}

// The address of this lane's 16 bytes of a matrix of 16 rows, a warp's of a tile of vectors, and
// columns from 8 chunk on.
__device__ __forceinline__ std::uint32_t VectorAddress(std::uint32_t tile, int chunk) {
  const int lane = LaneId();
  const int row = static_cast<int>(threadIdx.x) / 32 * 16 + lane % 16;
  return tile + row * kVectorPitch + ((chunk + lane / 16) ^ row / 2 % 4) * 16;
}

// Writes a thread's part of 64 vectors, times a factor for each of its two rows, to a tile.
template <typename T>
__device__ __forceinline__ void WriteVectors(std::uint32_t tile, const float (&c)[kVectorValues],
                                             float top, float bottom) {
#pragma unroll
  for (int chunk = 0; chunk < kHopperShortDim / 8; chunk += 2) {
    const int at = 4 * chunk;
    StoreMatrix(VectorAddress(tile, chunk), Pack(c[at] * top, c[at + 1] * top, T{}),
                Pack(c[at + 2] * bottom, c[at + 3] * bottom, T{}),
                Pack(c[at + 4] * top, c[at + 5] * top, T{}),
                Pack(c[at + 6] * bottom, c[at + 7] * bottom, T{}));
  }
}

__device__ __forceinline__ float SumOfRow(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}

}  // namespace megafold::cuda
