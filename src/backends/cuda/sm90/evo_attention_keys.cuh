// dK and dV on Hopper.
//
// A block keeps 128 keys of one head, 64 to a consumer warpgroup, for kRows rows of a group, and
// walks over tiles of 64 queries. Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T, so
// that P^T and dS^T are in registers as the A operand of dV += P^T dO and dK += dS^T Q: nothing but
// the operands passes through shared memory. A tile of bias is read once for the kRows rows. One
// thread of a third warpgroup feeds the ring of query tiles. Blocks are persistent: the next keys
// arrive while the last products of these run.
#pragma once

#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

template <int kDim>
struct KeysLayout {
  using Tile = VectorTile<kDim>;
  static constexpr int kRows = kDim <= 32 ? 2 : 1;
  static constexpr int kStages = 3;
  static constexpr int kKeyStages = 2;
  // A stage of queries: Q, dO of each row, bias of each warpgroup, statistics of each row.
  static constexpr int kQueriesBytes = kRows * 2 * Tile::kBytes;
  static constexpr int kBias = kQueriesBytes;
  static constexpr int kStatistics = kBias + kConsumers * kBiasTileBytes;
  static constexpr int kStageBytes = kStatistics + 1024;
  static_assert(kRows * kStatisticsTileBytes <= 1024);
  // A stage of keys: K, V of each warpgroup and row.
  static constexpr int kKeyStageBytes = kConsumers * kRows * 2 * Tile::kBytes;
  static constexpr int kKeys = kStages * kStageBytes;
  static constexpr int kBarriers = kKeys + kKeyStages * kKeyStageBytes;
  static constexpr int kBytes = kBarriers + (kStages + kKeyStages) * 2 * 8 + 1024;  // alignment

  static __device__ __forceinline__ std::uint32_t Full(int stage) { return kBarriers + stage * 16; }
  static __device__ __forceinline__ std::uint32_t Empty(int stage) { return Full(stage) + 8; }
  static __device__ __forceinline__ std::uint32_t KeysFull(int stage) {
    return Full(kStages + stage);
  }
  static __device__ __forceinline__ std::uint32_t KeysEmpty(int stage) {
    return KeysFull(stage) + 8;
  }
};

// Blocks that run together share queries: the key block varies fastest.
template <int kRows>
struct KeysWork {
  int key_tile, head;  // first tile of the block
  int group, row;      // first row

  static __host__ __device__ int Count(const HopperAttentionParams& p) {
    return static_cast<int>(p.groups * ((p.rows + kRows - 1) / kRows)) * p.heads *
           ((p.key_tiles + kConsumers - 1) / kConsumers);
  }
  __device__ __forceinline__ KeysWork(const HopperAttentionParams& p, int index) {
    const int blocks = (p.key_tiles + kConsumers - 1) / kConsumers;
    const int row_blocks = (static_cast<int>(p.rows) + kRows - 1) / kRows;
    key_tile = index % blocks * kConsumers;
    index /= blocks;
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
  using Tile = typename Layout::Tile;
  constexpr int kRows = Layout::kRows;
  RingPosition<Layout::kStages> queries;
  RingPosition<Layout::kKeyStages> keys;
  const int count = KeysWork<kRows>::Count(p);
  for (int index = static_cast<int>(blockIdx.x); index < count;
       index += static_cast<int>(gridDim.x)) {
    const KeysWork<kRows> work(p, index);
    const int active = min(kConsumers, p.key_tiles - work.key_tile);
    GroupRow rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = work.Row(p, r);
    const std::uint32_t keys_full = shared + Layout::KeysFull(keys.stage);
    BarrierWait(shared + Layout::KeysEmpty(keys.stage), keys.EmptyParity());
    BarrierExpect(keys_full, active * kRows * 2 * Tile::kBytes);
    std::uint32_t to = shared + Layout::kKeys + keys.stage * Layout::kKeyStageBytes;
    for (int consumer = 0; consumer < active; ++consumer) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const GroupRow at = rows[r];
        const int token = (work.key_tile + consumer) * kHopperTile;
        CopyTensor(to, p.k_map, token, work.head, at.row, at.batch, keys_full);
        CopyTensor(to + Tile::kBytes, p.v_map, token, work.head, at.row, at.batch, keys_full);
        to += 2 * Tile::kBytes;
      }
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
                              (bias != nullptr ? active * kBiasTileBytes : 0));
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const GroupRow at = rows[r];
        const std::uint32_t q = stage + r * 2 * Tile::kBytes;
        CopyTensor(q, p.q_map, tile * kHopperTile, work.head, at.row, at.batch, full);
        CopyTensor(q + Tile::kBytes, p.dout_map, tile * kHopperTile, work.head, at.row, at.batch,
                   full);
        CopyBulk(stage + Layout::kStatistics + r * kStatisticsTileBytes,
                 StatisticsTile(p, at, work.head, tile), kStatisticsTileBytes, full);
      }
      if (bias != nullptr) {
        for (int consumer = 0; consumer < active; ++consumer) {
          CopyBulk(stage + Layout::kBias + consumer * kBiasTileBytes,
                   bias + (consumer * p.query_tiles + tile) * (kBiasTileBytes / 4), kBiasTileBytes,
                   full);
        }
      }
      queries.Advance();
    }
  }
}

// The two terms of the mask that a thread's rows (keys) have.
__device__ __forceinline__ float2 RowMask(const HopperAttentionParams& p, const GroupRow& at,
                                          int key) {
  if (p.packed_mask.terms == nullptr) return {0.0F, 0.0F};
  const float* const row = MaskRow(p, at) + key + Fragment().row;
  return {row[0], row[8]};
}

// x becomes p = 2^(x - lse) where lse belongs to the columns.
__device__ __forceinline__ void ColumnProbabilities(float (&x)[kScores], std::uint32_t statistics) {
#pragma unroll
  for (int v = 0; v < kScores / 4; ++v) {
    const float2 lse = LoadShared2(statistics + (v * 4 + threadIdx.x % 4) * 16);
    x[4 * v] = Exp2(x[4 * v] - lse.x);
    x[4 * v + 1] = Exp2(x[4 * v + 1] - lse.y);
    x[4 * v + 2] = Exp2(x[4 * v + 2] - lse.x);
    x[4 * v + 3] = Exp2(x[4 * v + 3] - lse.y);
  }
}

// dp becomes dS = p (dp - delta) where delta belongs to the columns.
__device__ __forceinline__ void ColumnScoreGradients(float (&dp)[kScores],
                                                     const float (&p)[kScores],
                                                     std::uint32_t statistics) {
#pragma unroll
  for (int v = 0; v < kScores / 4; ++v) {
    const float2 delta = LoadShared2(statistics + (v * 4 + threadIdx.x % 4) * 16 + 8);
    dp[4 * v] = p[4 * v] * (dp[4 * v] - delta.x);
    dp[4 * v + 1] = p[4 * v + 1] * (dp[4 * v + 1] - delta.y);
    dp[4 * v + 2] = p[4 * v + 2] * (dp[4 * v + 2] - delta.x);
    dp[4 * v + 3] = p[4 * v + 3] * (dp[4 * v + 3] - delta.y);
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void ConsumeKeys(const HopperAttentionParams& p, std::uint32_t shared,
                                            int consumer) {
  using Layout = KeysLayout<kDim>;
  using Tile = typename Layout::Tile;
  constexpr int kRows = Layout::kRows;
  const bool signals = threadIdx.x % 32 == 0;
  RingPosition<Layout::kStages> queries;
  RingPosition<Layout::kKeyStages> keys;
  const int count = KeysWork<kRows>::Count(p);
  for (int index = static_cast<int>(blockIdx.x); index < count;
       index += static_cast<int>(gridDim.x)) {
    const KeysWork<kRows> work(p, index);
    const int key = (work.key_tile + consumer) * kHopperTile;
    const bool active = key < p.keys;
    float dk[kRows][kDim / 2] = {};
    float dv[kRows][kDim / 2] = {};
    float2 mask[kRows];
    bool masked[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      mask[r] = active ? RowMask(p, work.Row(p, r), key) : float2{0.0F, 0.0F};
      masked[r] = __any_sync(0xFFFFFFFFU, mask[r].x != 0.0F || mask[r].y != 0.0F);
    }
    const std::uint32_t kv = shared + Layout::kKeys + keys.stage * Layout::kKeyStageBytes +
                             consumer * kRows * 2 * Tile::kBytes;
    BarrierWait(shared + Layout::KeysFull(keys.stage), keys.FullParity());
    std::uint32_t used = 0;  // the stage whose products may still run
    for (int tile = 0; tile < p.query_tiles; ++tile) {
      const std::uint32_t stage = shared + queries.stage * Layout::kStageBytes;
      BarrierWait(shared + Layout::Full(queries.stage), queries.FullParity());
      if (active) {
        float bias[kScores];
        if (p.bias_by_keys != nullptr) {
          LoadBias(bias, stage + Layout::kBias + consumer * kBiasTileBytes);
        } else {
#pragma unroll
          for (float& b : bias) b = 0.0F;
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const std::uint32_t q = stage + r * 2 * Tile::kBytes;
          const std::uint32_t dout = q + Tile::kBytes;
          const std::uint32_t k = kv + r * 2 * Tile::kBytes;
          const std::uint32_t statistics = stage + Layout::kStatistics + r * kStatisticsTileBytes;
          float s[kScores];
          float dp[kScores];
          std::uint32_t weights[kHopperTile / 16][4];
          std::uint32_t gradients[kHopperTile / 16][4];
          WgmmaFence();
          MultiplyVectors<T, kDim>(s, k, q);
          WgmmaCommit();
          MultiplyVectors<T, kDim>(dp, k + Tile::kBytes, dout);
          WgmmaCommit();
          WgmmaWait<1>();
          PinRegisters(s);
          if (r == 0 && tile > 0 && signals) BarrierArrive(used);
#pragma unroll
          for (int i = 0; i < kScores; ++i) s[i] = fmaf(s[i], p.scale_log2, bias[i]);
          if (masked[r]) {
#pragma unroll
            for (int i = 0; i < kScores; ++i) s[i] += i & 2 ? mask[r].y : mask[r].x;
          }
          ColumnProbabilities(s, statistics);
          RoundWeights<T>(weights, s);
          WgmmaWait<0>();
          PinRegisters(dp);
          WgmmaFence();
          MultiplyWeights<T, kDim>(dv[r], weights, dout, tile > 0);
          WgmmaCommit();
          ColumnScoreGradients(dp, s, statistics);
          RoundWeights<T>(gradients, dp);
          WgmmaFence();
          MultiplyWeights<T, kDim>(dk[r], gradients, q, tile > 0);
          WgmmaCommit();
        }
      } else if (tile > 0 && signals) {
        BarrierArrive(used);
      }
      used = shared + Layout::Empty(queries.stage);
      queries.Advance();
    }
    WgmmaWait<0>();
    if (signals) {
      BarrierArrive(used);
      BarrierArrive(shared + Layout::KeysEmpty(keys.stage));
    }
    keys.Advance();
    if (!active) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      PinRegisters(dk[r]);
      PinRegisters(dv[r]);
      if (work.row + r >= p.rows) break;
      const GroupRow at = work.Row(p, r);
      if (p.dk.data != nullptr) {
        StoreVectors<T, kDim>(p.dk, at, work.head, key, p.keys - key, p.dim, dk[r], p.scale);
      }
      if (p.dv.data != nullptr) {
        StoreVectors<T, kDim>(p.dv, at, work.head, key, p.keys - key, p.dim, dv[r], 1.0F);
      }
    }
  }
}

template <typename T, int kDim>
__global__ __launch_bounds__(kHopperThreads,
                             1) void KeysKernel(const __grid_constant__ HopperAttentionParams p) {
  using Layout = KeysLayout<kDim>;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Layout::kStages + Layout::kKeyStages; ++i) {
      BarrierInit(shared + Layout::Full(i), 1);
      BarrierInit(shared + Layout::Empty(i), kConsumers * 4);
    }
    BarrierInitFence();
  }
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x / 128);
  if (warpgroup == kConsumers) {
    GiveUpRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 < 32 && ElectOne()) FeedKeys<kDim>(p, shared);
  } else {
    TakeRegisters<kConsumerRegisters>();
    ConsumeKeys<T, kDim>(p, shared, warpgroup);
  }
}

}  // namespace megafold::cuda
