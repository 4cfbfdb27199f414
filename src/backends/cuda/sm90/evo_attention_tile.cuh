// What the Hopper EvoAttention kernels share: the shared-memory tiles of 64 vectors, the products
// over them, and the elementwise steps on a 64 x 64 tile of scores in wgmma's accumulator order
// (device/wgmma.cuh).
//
// Backward starts the products from what is added to them, so that the elementwise work is little
// more than the exponential: s = bias / scale + <q, k>, p = 2^(scale log2(e) s - lse log2(e)); dp =
// -delta + <dO, v>, dS = p dp.
#pragma once

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/vector_tile.cuh"
#include "backends/cuda/sm90/evo_attention_params.h"

namespace megafold::cuda {

inline constexpr int kScores = kHopperTile * kHopperTile / 128;  // of which a thread holds
inline constexpr int kBiasTileBytes = kHopperTile * kHopperTile * 4;
inline constexpr int kColumnsTileBytes = kHopperTile * 16;  // of mask or statistics

// How a block's threads are divided: consumer warpgroups, then one that feeds them.
template <int kWarpgroups>
struct Roles {
  static_assert(kWarpgroups == 2 || kWarpgroups == 3);
  static constexpr int kConsumers = kWarpgroups;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 232;
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 40;
};

// The warpgroup of this thread, known to be the same for a whole warp.
__device__ __forceinline__ int Warpgroup() {
  return __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x / 128), 0);
}

// Row `index` of a group as a (batch, row of the batch) pair.
struct GroupRow {
  int batch = 0, row = 0;
  GroupRow() = default;
  __device__ __forceinline__ GroupRow(const HopperAttentionParams& p, int group, int index)
      : batch(group), row(index) {
    if (p.rows != p.batch_rows) {  // both fit in 32 bits; divisions of 64 are slow
      batch = index / static_cast<int>(p.batch_rows);
      row = index % static_cast<int>(p.batch_rows);
    }
  }
};

// A tile of 64 vectors of one operand: strips of kPitch bytes, one box of a tensor copy each.
template <int kDim>
struct VectorTile {
  static constexpr int kPitch = BoxColumns(kDim) * 2;
  static constexpr int kStrips = kDim / BoxColumns(kDim);
  static constexpr int kStripBytes = kHopperTile * kPitch;
  static constexpr int kBytes = kStrips * kStripBytes;
  using Descriptor = TileDescriptor<kPitch>;

  static __device__ __forceinline__ void Copy(std::uint32_t to, const CUtensorMap& map, int token,
                                              int head, const GroupRow& at, std::uint32_t barrier) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      CopyTensor(to + strip * kStripBytes, map, strip * BoxColumns(kDim), token, head, at.row,
                 at.batch, barrier);
    }
  }
  static __device__ __forceinline__ void Store(const CUtensorMap& map, std::uint32_t from,
                                               int token, int head, const GroupRow& at) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      StoreTensor(map, from + strip * kStripBytes, strip * BoxColumns(kDim), token, head, at.row,
                  at.batch);
    }
  }
};

// Where a thread of a warpgroup stands in a tile of scores: its first row, and column pair 0.
struct Fragment {
  int row, column;
  __device__ __forceinline__ Fragment() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    row = static_cast<int>(threadIdx.x % 128 / 32) * 16 + lane / 4;
    column = lane % 4 * 2;
  }
};

__device__ __forceinline__ float4 LoadShared4(std::uint32_t address) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address));
  return value;
}
__device__ __forceinline__ void StoreShared4(std::uint32_t address, float4 value) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
}

// s (+)= A B^T of two tiles of vectors.
template <typename T, int kDim>
__device__ __forceinline__ void MultiplyVectors(float (&s)[kScores], std::uint32_t a,
                                                std::uint32_t b, bool accumulate) {
  MultiplyVectors<T, kDim, VectorTile<kDim>::kPitch>(s, a, b, accumulate);
}

// s (+)= A B^T for eight columns of bfloat16 more: `columns` describes B, a lane has in `top` and
// `bottom` columns 2 (lane % 4) and the next one of its two rows of A.
__device__ __forceinline__ void MultiplyColumns(float (&s)[kScores], std::uint32_t top,
                                                std::uint32_t bottom, std::uint64_t columns,
                                                bool accumulate) {
  const std::uint32_t a[4] = {top, bottom, 0, 0};
  Wgmma<__nv_bfloat16, kHopperTile>::Run<Order::kKMajor>(s, a, columns, accumulate);
}

// Fills a tile of columns with zeros; a barrier of the block follows.
__device__ __forceinline__ void ClearColumns(std::uint32_t tile) {
  if (threadIdx.x < kHopperTile) StoreShared4(tile + threadIdx.x * 16, {0.0F, 0.0F, 0.0F, 0.0F});
  FenceAsyncProxy();
}

// c (+)= W B of a tile of weights, already rounded, and a tile of vectors.
template <typename T, int kDim>
__device__ __forceinline__ void MultiplyWeights(float (&c)[kDim / 2],
                                                const std::uint32_t (&weights)[kHopperTile / 16][4],
                                                std::uint32_t b, bool accumulate) {
  using Descriptor = typename VectorTile<kDim>::Descriptor;
  const std::uint32_t right = Descriptor::Low(b);
#pragma unroll
  for (int k = 0; k < kHopperTile / 16; ++k) {
    Wgmma<T, kDim>::template Run<Order::kMnMajor>(
        c, weights[k], Descriptor::FromLow(right + k * Descriptor::kStepMnMajor),
        accumulate || k > 0);
  }
}

template <typename T>
__device__ __forceinline__ void RoundWeights(std::uint32_t (&weights)[kHopperTile / 16][4],
                                             const float (&p)[kScores]) {
#pragma unroll
  for (int k = 0; k < kHopperTile / 16; ++k) ScoresAsA<T>(weights[k], p, k);
}

// A thread's bias from a packed tile (evo_attention_pack.h); `mine` is where its first part lies.
__device__ __forceinline__ void LoadBias(float (&bias)[kScores], std::uint32_t mine) {
#pragma unroll
  for (int v = 0; v < kScores / 4; ++v) {
    const float4 value = LoadShared4(mine + v * 128 * 16);
    bias[4 * v] = value.x;
    bias[4 * v + 1] = value.y;
    bias[4 * v + 2] = value.z;
    bias[4 * v + 3] = value.w;
  }
}

// A row's mask columns (evo_attention_pack.h); only where there are some.
__device__ __forceinline__ const char* MaskColumnsRow(const HopperAttentionParams& p,
                                                      const GroupRow& at) {
  return p.mask_columns.tiles +
         (at.batch * p.mask_columns.batch + at.row * p.mask_columns.row) * kMaskColumnsBytes;
}

// A tile's statistics (evo_attention_pack.h).
__device__ __forceinline__ const void* StatisticsTile(const HopperAttentionParams& p,
                                                      const GroupRow& at, int head, int tile) {
  const std::int64_t row = static_cast<std::int64_t>(at.batch) * p.batch_rows + at.row;
  return p.statistics + ((row * p.heads + head) * p.query_tiles + tile) * (kColumnsTileBytes / 2);
}

// Writes accumulators, those of a thread's first row times `top` and of its second times `bottom`,
// as a tile of vectors.
template <typename T, int kDim>
__device__ __forceinline__ void WriteTile(std::uint32_t tile, const float (&c)[kDim / 2], float top,
                                          float bottom) {
  WriteVectors<T, kDim, VectorTile<kDim>::kPitch>(tile, c, top, bottom);
}

template <typename T, int kDim>
__device__ __forceinline__ void WriteTile(std::uint32_t tile, const float (&c)[kDim / 2],
                                          float factor) {
  WriteTile<T, kDim>(tile, c, factor, factor);
}

}  // namespace megafold::cuda
