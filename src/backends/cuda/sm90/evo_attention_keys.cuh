// dK and dV on Hopper.
//
// A block keeps 64 keys of one head, of a row for each consumer warpgroup, and walks over tiles of
// 64 queries. Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T, so that P^T and dS^T
// are in registers as the A operand of dV += P^T dO and dK += dS^T Q: nothing but the operands
// passes through shared memory. The rows share each tile of bias. One thread of the last warpgroup
// feeds the ring of query tiles. Blocks are persistent: the next keys arrive while the last
// products of these run.
#pragma once

#include <type_traits>

#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

template <int kDim>
struct KeysLayout {
  using Tile = VectorTile<kDim>;
  // Three consumers hide more latency than two; longer vectors need more registers.
  using Roles = Roles<kDim <= 32 ? 3 : 2>;
  static constexpr int kRows = Roles::kConsumers;
  static constexpr int kStages = kDim <= 32 ? 3 : 2;
  static constexpr int kKeyStages = 2;
  // A stage of queries: Q, dO of each row, bias, statistics of each row.
  static constexpr int kQueriesBytes = kRows * 2 * Tile::kBytes;
  static constexpr int kBias = kQueriesBytes;
  static constexpr int kStatistics = kBias + kBiasTileBytes;
  static constexpr int kStageBytes = kStatistics + 2048;
  static_assert(kRows * kStatisticsTileBytes <= 2048);
  // The next keys: K, V of each row.
  static constexpr int kKeyBytes = kRows * 2 * Tile::kBytes;
  static constexpr int kKeys = kStages * kStageBytes;
  static constexpr int kBarriers = kKeys + kKeyStages * kKeyBytes;
  static constexpr int kBytes = kBarriers + (kStages + kKeyStages) * 16 + 1024;  // alignment
  static_assert(kBytes <= 227 * 1024);

  static __device__ __forceinline__ std::uint32_t Full(int stage) { return kBarriers + stage * 16; }
  static __device__ __forceinline__ std::uint32_t Empty(int stage) { return Full(stage) + 8; }
  static __device__ __forceinline__ std::uint32_t KeysFull(int stage) {
    return Full(kStages + stage);
  }
  static __device__ __forceinline__ std::uint32_t KeysEmpty(int stage) {
    return Empty(kStages + stage);
  }
};

// Blocks that run together share queries: the tile of keys varies fastest.
template <int kRows>
struct KeysWork {
  int key_tile, head;
  int group, row;  // first row

  static __host__ __device__ int Count(const HopperAttentionParams& p) {
    return static_cast<int>(p.groups * ((p.rows + kRows - 1) / kRows)) * p.heads * p.key_tiles;
  }
  __device__ __forceinline__ KeysWork(const HopperAttentionParams& p, int index) {
    const int row_blocks = (static_cast<int>(p.rows) + kRows - 1) / kRows;
    key_tile = index % p.key_tiles;
    index /= p.key_tiles;
    head = index % p.heads;
    index /= p.heads;
    row = index % row_blocks * kRows;
    group = index / row_blocks;
  }
  // The group has no row past its last one; that is read again and not stored.
  __device__ __forceinline__ GroupRow Row(const HopperAttentionParams& p, int offset) const {
    return {p, group, min(row + offset, static_cast<int>(p.rows) - 1)};
  }
};

template <int kDim>
__device__ __forceinline__ void FeedKeys(const HopperAttentionParams& p, std::uint32_t shared) {
  using Layout = KeysLayout<kDim>;
  constexpr int kTileBytes = Layout::Tile::kBytes;
  constexpr int kRows = Layout::kRows;
  RingPosition<Layout::kStages> queries;
  RingPosition<Layout::kKeyStages> keys;
  const int count = KeysWork<kRows>::Count(p);
  for (int index = static_cast<int>(blockIdx.x); index < count;
       index += static_cast<int>(gridDim.x)) {
    const KeysWork<kRows> work(p, index);
    GroupRow rows[kRows];
    const std::uint32_t keys_full = shared + Layout::KeysFull(keys.stage);
    BarrierWait(shared + Layout::KeysEmpty(keys.stage), keys.EmptyParity());
    BarrierExpect(keys_full, Layout::kKeyBytes);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rows[r] = work.Row(p, r);
      const std::uint32_t k =
          shared + Layout::kKeys + keys.stage * Layout::kKeyBytes + r * 2 * kTileBytes;
      const int token = work.key_tile * kHopperTile;
      CopyTensor(k, p.k_map, token, work.head, rows[r].row, rows[r].batch, keys_full);
      CopyTensor(k + kTileBytes, p.v_map, token, work.head, rows[r].row, rows[r].batch, keys_full);
    }
    keys.Advance();
    const float* bias = p.bias_by_keys;
    if (bias != nullptr) {
      bias += (static_cast<std::int64_t>(work.group * p.heads + work.head) * p.key_tiles +
               work.key_tile) *
              p.query_tiles * (kBiasTileBytes / 4);
    }
    for (int tile = 0; tile < p.query_tiles; ++tile) {
      const std::uint32_t stage = shared + queries.stage * Layout::kStageBytes;
      const std::uint32_t full = shared + Layout::Full(queries.stage);
      BarrierWait(shared + Layout::Empty(queries.stage), queries.EmptyParity());
      BarrierExpect(full, Layout::kQueriesBytes + kRows * kStatisticsTileBytes +
                              (bias != nullptr ? kBiasTileBytes : 0));
      if (bias != nullptr) {
        CopyBulk(stage + Layout::kBias, bias + tile * (kBiasTileBytes / 4), kBiasTileBytes, full);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::uint32_t q = stage + r * 2 * kTileBytes;
        CopyTensor(q, p.q_map, tile * kHopperTile, work.head, rows[r].row, rows[r].batch, full);
        CopyTensor(q + kTileBytes, p.dout_map, tile * kHopperTile, work.head, rows[r].row,
                   rows[r].batch, full);
        CopyBulk(stage + Layout::kStatistics + r * kStatisticsTileBytes,
                 StatisticsTile(p, rows[r], work.head, tile), kStatisticsTileBytes, full);
      }
      queries.Advance();
    }
  }
}

// What the mask adds to the scores of a thread's two keys.
__device__ __forceinline__ float2 RowMask(const HopperAttentionParams& p, const GroupRow& at,
                                          int key) {
  if (p.packed_mask.terms == nullptr) return {0.0F, 0.0F};
  const float* const row = MaskRow(p, at) + key + Fragment().row;
  return {row[0] * p.mask_unit, row[8] * p.mask_unit};
}

// dp starts as -delta, which belongs to the columns.
__device__ __forceinline__ void StartGradients(float (&dp)[kScores], std::uint32_t statistics) {
#pragma unroll
  for (int v = 0; v < kScores / 4; ++v) {
    const float2 delta = LoadShared2(statistics + v * 64 + 8);
    dp[4 * v] = dp[4 * v + 2] = delta.x;
    dp[4 * v + 1] = dp[4 * v + 3] = delta.y;
  }
}

// s becomes p = 2^(scale_log2 s - lse) where lse belongs to the columns.
__device__ __forceinline__ void ColumnProbabilities(float (&s)[kScores], std::uint32_t statistics,
                                                    float scale_log2) {
#pragma unroll
  for (int v = 0; v < kScores / 4; ++v) {
    const float2 lse = LoadShared2(statistics + v * 64);
    s[4 * v] = Exp2(fmaf(s[4 * v], scale_log2, lse.x));
    s[4 * v + 1] = Exp2(fmaf(s[4 * v + 1], scale_log2, lse.y));
    s[4 * v + 2] = Exp2(fmaf(s[4 * v + 2], scale_log2, lse.x));
    s[4 * v + 3] = Exp2(fmaf(s[4 * v + 3], scale_log2, lse.y));
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void ConsumeKeys(const HopperAttentionParams& p, std::uint32_t shared,
                                            int consumer) {
  using Layout = KeysLayout<kDim>;
  constexpr int kTileBytes = Layout::Tile::kBytes;
  const bool signals = threadIdx.x % 32 == 0;
  const bool has_bias = p.bias_by_keys != nullptr;
  RingPosition<Layout::kStages> queries;
  RingPosition<Layout::kKeyStages> keys;
  const int count = KeysWork<Layout::kRows>::Count(p);
  for (int index = static_cast<int>(blockIdx.x); index < count;
       index += static_cast<int>(gridDim.x)) {
    const KeysWork<Layout::kRows> work(p, index);
    const GroupRow at = work.Row(p, consumer);
    const int key = work.key_tile * kHopperTile;
    const float2 mask = RowMask(p, at, key);
    const bool masked = __any_sync(0xFFFFFFFFU, mask.x != 0.0F || mask.y != 0.0F);
    float dk[kDim / 2] = {};
    float dv[kDim / 2] = {};
    const std::uint32_t keys_empty = shared + Layout::KeysEmpty(keys.stage);
    const std::uint32_t k =
        shared + Layout::kKeys + keys.stage * Layout::kKeyBytes + consumer * 2 * kTileBytes;
    BarrierWait(shared + Layout::KeysFull(keys.stage), keys.FullParity());
    keys.Advance();
    float s[kScores];
    float dp[kScores];
    std::uint32_t weights[kHopperTile / 16][4];
    std::uint32_t gradients[kHopperTile / 16][4];
    std::uint32_t before = 0;  // Q and dO of the tile before this one
    std::uint32_t used = 0;    // and its stage
    const auto multiply_weights = [&](bool accumulate) {
      MultiplyWeights<T, kDim>(dv, weights, before + kTileBytes, accumulate);
      MultiplyWeights<T, kDim>(dk, gradients, before, accumulate);
    };
    // S and dP of one tile together with dV and dK of the tile before it: these run while the
    // exponentials of S are taken. Operands of the matrix unit may only be written while nothing is
    // queued there, and a wait for part of what is queued must follow it without a branch between.
    const auto consume = [&]<bool kFirst>(int tile, std::bool_constant<kFirst>) {
      const std::uint32_t stage = shared + queries.stage * Layout::kStageBytes;
      const std::uint32_t q = stage + consumer * 2 * kTileBytes;
      const std::uint32_t statistics =
          stage + Layout::kStatistics + consumer * kStatisticsTileBytes + threadIdx.x % 4 * 16;
      BarrierWait(shared + Layout::Full(queries.stage), queries.FullParity());
      if (has_bias) LoadBias(s, stage + Layout::kBias);
      StartGradients(dp, statistics);
      WgmmaFence();
      MultiplyVectors<T, kDim>(s, k, q, has_bias);
      WgmmaCommit();
      MultiplyVectors<T, kDim>(dp, k + kTileBytes, q + kTileBytes, true);
      if constexpr (!kFirst) multiply_weights(tile > 1);
      WgmmaCommit();
      WgmmaWait<1>();
      PinRegisters(s);
      if (masked) {
#pragma unroll
        for (int i = 0; i < kScores; ++i) s[i] += i & 2 ? mask.y : mask.x;
      }
      ColumnProbabilities(s, statistics, p.scale_log2);
      WgmmaWait<0>();
      PinRegisters(dp);
      if (!kFirst && signals) BarrierArrive(used);
      before = q;
      used = shared + Layout::Empty(queries.stage);
      queries.Advance();
      RoundWeights<T>(weights, s);
#pragma unroll
      for (int i = 0; i < kScores; ++i) dp[i] *= s[i];
      RoundWeights<T>(gradients, dp);
    };
    PinRegisters(dk);
    PinRegisters(dv);
    consume(0, std::true_type{});
    for (int tile = 1; tile < p.query_tiles; ++tile) consume(tile, std::false_type{});
    WgmmaFence();
    multiply_weights(p.query_tiles > 1);
    WgmmaCommit();
    WgmmaWait<0>();
    PinRegisters(dk);
    PinRegisters(dv);
    if (signals) {
      BarrierArrive(used);
      BarrierArrive(keys_empty);
    }
    if (work.row + consumer >= p.rows) continue;
    if (p.dk.data != nullptr) {
      StoreVectors<T, kDim>(p.dk, at, work.head, key, p.keys - key, p.dim, dk, p.scale);
    }
    if (p.dv.data != nullptr) {
      StoreVectors<T, kDim>(p.dv, at, work.head, key, p.keys - key, p.dim, dv, 1.0F);
    }
  }
}

template <typename T, int kDim>
__global__ __launch_bounds__(KeysLayout<kDim>::Roles::kThreads, 1) void KeysKernel(const __grid_constant__ HopperAttentionParams p) {
  using Layout = KeysLayout<kDim>;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Layout::kStages + Layout::kKeyStages; ++i) {
      BarrierInit(shared + Layout::Full(i), 1);
      BarrierInit(shared + Layout::Empty(i), Layout::Roles::kConsumers * 4);
    }
    BarrierInitFence();
  }
  __syncthreads();
  const int warpgroup = Warpgroup();
  if (warpgroup == Layout::Roles::kConsumers) {
    GiveUpRegisters<Layout::Roles::kProducerRegisters>();
    if (threadIdx.x % 128 < 32 && ElectOne()) FeedKeys<kDim>(p, shared);
  } else {
    TakeRegisters<Layout::Roles::kConsumerRegisters>();
    ConsumeKeys<T, kDim>(p, shared, warpgroup);
  }
}

}  // namespace megafold::cuda
