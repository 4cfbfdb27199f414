// dQ and dBias on Hopper.
//
// A block keeps 64 queries of one head and walks over the rows of a group, or of a part of it; each
// of its two consumer warpgroups has its own kTiles tiles of 64 keys. dBias of those (queries,
// keys) stays in registers while rows go by, the bias in shared memory: neither is touched again
// for a row. A row's dQ is the sum over the warpgroups of a cluster, whose blocks share the keys
// out among them: block r + 1 hands its sum to block r through distributed shared memory, block 0
// stores. Within a block one warpgroup passes its part to the other, which one changes with every
// row.
//
// S = Q K^T and dP = dO V^T have queries for rows, so dS is in registers as the A operand of dQ +=
// dS K. One thread feeds Q, dO and statistics, one for each consumer feeds K, V and mask.
#pragma once

#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

template <int kDim>
struct QueriesLayout {
  using Tile = VectorTile<kDim>;
  static constexpr int kTiles = kDim <= 32 ? 3 : 2;  // of keys, a warpgroup
  static constexpr int kQueryStages = 2;
  static constexpr int kKeyStages = kDim <= 32 ? 4 : 2;  // a warpgroup
  static constexpr int kQueryStageBytes = 2 * Tile::kBytes;
  static constexpr int kKeyStageBytes = 2 * Tile::kBytes;
  static constexpr int kExchangeBytes = kDim / 2 * 128 * 4;

  static constexpr int kBias = 0;
  static constexpr int kKeys = kBias + kConsumers * kTiles * kBiasTileBytes;
  static constexpr int kQueries = kKeys + kConsumers * kKeyStages * kKeyStageBytes;
  static constexpr int kStatistics = kQueries + kQueryStages * kQueryStageBytes;
  static constexpr int kMask = kStatistics + kQueryStages * kStatisticsTileBytes;
  static constexpr int kExchange = kMask + kConsumers * kKeyStages * kMaskTileBytes;
  static constexpr int kReceive = kExchange + kExchangeBytes;  // a buffer for each warpgroup
  static constexpr int kBarriers = kReceive + kConsumers * kExchangeBytes;
  static constexpr int kBytes = kBarriers + 256 + 1024;  // alignment
  static_assert(kBytes <= 227 * 1024);

  static __device__ __forceinline__ std::uint32_t QueriesFull(int stage) {
    return kBarriers + stage * 16;
  }
  static __device__ __forceinline__ std::uint32_t QueriesEmpty(int stage) {
    return QueriesFull(stage) + 8;
  }
  static __device__ __forceinline__ std::uint32_t KeysFull(int consumer, int stage) {
    return QueriesFull(kQueryStages + consumer * kKeyStages + stage);
  }
  static __device__ __forceinline__ std::uint32_t KeysEmpty(int consumer, int stage) {
    return KeysFull(consumer, stage) + 8;
  }
  // A partial dQ has arrived from the next block; the next block may send again.
  static __device__ __forceinline__ std::uint32_t Received(int consumer) {
    return KeysFull(kConsumers, 0) + consumer * 16;
  }
  static __device__ __forceinline__ std::uint32_t Sendable(int consumer) {
    return Received(consumer) + 8;
  }
  static __device__ __forceinline__ std::uint32_t BiasFull(int consumer) {
    return Received(kConsumers) + consumer * 8;
  }
  static_assert((kQueryStages + kConsumers * kKeyStages + kConsumers + 1) * 16 <= 256);
};

// What a block does. Blocks that run together share keys: the query tile varies fastest.
struct QueriesWork {
  int rank, blocks;  // in the cluster
  int query_tile, head, group, chunk;
  int first_row, last_row;  // of the group; [first, last)

  __device__ __forceinline__ explicit QueriesWork(const HopperAttentionParams& p) {
    blocks = p.key_blocks;
    int index = static_cast<int>(blockIdx.x);
    rank = index % blocks;
    index /= blocks;
    query_tile = index % p.query_tiles;
    index /= p.query_tiles;
    head = index % p.heads;
    index /= p.heads;
    chunk = index % p.row_chunks;
    group = index / p.row_chunks;
    first_row = static_cast<int>(p.rows * chunk / p.row_chunks);
    last_row = static_cast<int>(p.rows * (chunk + 1) / p.row_chunks);
  }
  // Tiles of keys of a consumer: [first, last).
  __device__ __forceinline__ int FirstTile(const HopperAttentionParams& p, int consumer) const {
    return min((rank * kConsumers + consumer) * p.consumer_tiles, p.key_tiles);
  }
  __device__ __forceinline__ int LastTile(const HopperAttentionParams& p, int consumer) const {
    return FirstTile(p, consumer + 1);
  }
};

template <int kDim>
__device__ __forceinline__ void FeedQueryRows(const HopperAttentionParams& p,
                                              const QueriesWork& work, std::uint32_t shared) {
  using Layout = QueriesLayout<kDim>;
  RingPosition<Layout::kQueryStages> ring;
  for (int i = work.first_row; i < work.last_row; ++i) {
    const GroupRow at(p, work.group, i);
    const std::uint32_t full = shared + Layout::QueriesFull(ring.stage);
    const std::uint32_t q = shared + Layout::kQueries + ring.stage * Layout::kQueryStageBytes;
    BarrierWait(shared + Layout::QueriesEmpty(ring.stage), ring.EmptyParity());
    BarrierExpect(full, Layout::kQueryStageBytes + kStatisticsTileBytes);
    CopyTensor(q, p.q_map, work.query_tile * kHopperTile, work.head, at.row, at.batch, full);
    CopyTensor(q + Layout::Tile::kBytes, p.dout_map, work.query_tile * kHopperTile, work.head,
               at.row, at.batch, full);
    CopyBulk(shared + Layout::kStatistics + ring.stage * kStatisticsTileBytes,
             StatisticsTile(p, at, work.head, work.query_tile), kStatisticsTileBytes, full);
    ring.Advance();
  }
}

template <int kDim>
__device__ __forceinline__ void FeedKeyRows(const HopperAttentionParams& p, const QueriesWork& work,
                                            std::uint32_t shared, int consumer) {
  using Layout = QueriesLayout<kDim>;
  const int first = work.FirstTile(p, consumer);
  const int last = work.LastTile(p, consumer);
  if (p.bias_by_queries != nullptr && first < last) {
    const std::uint32_t full = shared + Layout::BiasFull(consumer);
    const std::int64_t row =
        static_cast<std::int64_t>(work.group * p.heads + work.head) * p.query_tiles +
        work.query_tile;
    BarrierExpect(full, (last - first) * kBiasTileBytes);
    for (int tile = first; tile < last; ++tile) {
      CopyBulk(shared + Layout::kBias + (consumer * Layout::kTiles + tile - first) * kBiasTileBytes,
               p.bias_by_queries + (row * p.key_tiles + tile) * (kBiasTileBytes / 4),
               kBiasTileBytes, full);
    }
  }
  RingPosition<Layout::kKeyStages> ring;
  for (int i = work.first_row; i < work.last_row; ++i) {
    const GroupRow at(p, work.group, i);
    const float* const mask = p.packed_mask.terms == nullptr ? nullptr : MaskRow(p, at);
    for (int tile = first; tile < last; ++tile) {
      const int slot = consumer * Layout::kKeyStages + ring.stage;
      const std::uint32_t full = shared + Layout::KeysFull(consumer, ring.stage);
      const std::uint32_t k = shared + Layout::kKeys + slot * Layout::kKeyStageBytes;
      BarrierWait(shared + Layout::KeysEmpty(consumer, ring.stage), ring.EmptyParity());
      BarrierExpect(full, Layout::kKeyStageBytes + (mask != nullptr ? kMaskTileBytes : 0));
      CopyTensor(k, p.k_map, tile * kHopperTile, work.head, at.row, at.batch, full);
      CopyTensor(k + Layout::Tile::kBytes, p.v_map, tile * kHopperTile, work.head, at.row, at.batch,
                 full);
      if (mask != nullptr) {
        CopyBulk(shared + Layout::kMask + slot * kMaskTileBytes, mask + tile * kHopperTile,
                 kMaskTileBytes, full);
      }
      ring.Advance();
    }
  }
}

// A thread's part of an accumulator to and from its own places in shared memory.
template <int kCount>
__device__ __forceinline__ void AddFromShared(float (&c)[kCount], std::uint32_t from) {
  const std::uint32_t mine = from + threadIdx.x % 128 * 16;
#pragma unroll
  for (int v = 0; v < kCount / 4; ++v) {
    const float4 value = LoadShared4(mine + v * 128 * 16);
    c[4 * v] += value.x;
    c[4 * v + 1] += value.y;
    c[4 * v + 2] += value.z;
    c[4 * v + 3] += value.w;
  }
}

// Sums a row's dQ over the consumers of the cluster. Row number `i` of the block's, counted from 0,
// ends with consumer i % 2; true for the one that has the sum in the end.
template <int kDim>
__device__ __forceinline__ bool SumQueryGradient(float (&dq)[kDim / 2], std::uint32_t shared,
                                                 const QueriesWork& work, int consumer, int i) {
  using Layout = QueriesLayout<kDim>;
  const int parity = i % 2;
  // A thread reads and writes the same places in turn, so nobody overwrites what is still to be
  // read. Two barriers, since the reader of one row is the writer of the next.
  const int barrier = 1 + parity;
  const std::uint32_t mine = threadIdx.x % 128 * 16;
  if (consumer != parity) {
#pragma unroll
    for (int v = 0; v < kDim / 8; ++v) {
      StoreShared4(shared + Layout::kExchange + mine + v * 128 * 16,
                   {dq[4 * v], dq[4 * v + 1], dq[4 * v + 2], dq[4 * v + 3]});
    }
    NamedBarrierArrive(barrier, kConsumers * 128);
    return false;
  }
  NamedBarrierSync(barrier, kConsumers * 128);
  AddFromShared(dq, shared + Layout::kExchange);
  const std::uint32_t phase = static_cast<std::uint32_t>(i / 2) & 1U;
  const bool signals = threadIdx.x % 32 == 0;
  const std::uint32_t buffer = shared + Layout::kReceive + consumer * Layout::kExchangeBytes;
  if (work.rank + 1 < work.blocks) {
    BarrierWaitCluster(shared + Layout::Received(consumer), phase);
    AddFromShared(dq, buffer);
    __syncwarp();
    if (signals) BarrierArriveRemote(shared + Layout::Sendable(consumer), work.rank + 1);
  }
  if (work.rank == 0) return true;
  BarrierWaitCluster(shared + Layout::Sendable(consumer), phase ^ 1U);
  const std::uint32_t remote = RemoteAddress(buffer + mine, work.rank - 1);
#pragma unroll
  for (int v = 0; v < kDim / 8; ++v) {
    StoreRemote(remote + v * 128 * 16, {dq[4 * v], dq[4 * v + 1], dq[4 * v + 2], dq[4 * v + 3]});
  }
  __syncwarp();
  if (signals) BarrierArriveRemote(shared + Layout::Received(consumer), work.rank - 1);
  return false;
}

// What a thread knows of its two queries in a row.
struct QueryStatistics {
  float lse[2], delta[2];
  __device__ __forceinline__ explicit QueryStatistics(std::uint32_t tile) {
    const Fragment mine;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = mine.row + half * 8;
      const float4 pair = LoadShared4(tile + query / 2 * 16);
      lse[half] = query % 2 ? pair.y : pair.x;
      delta[half] = query % 2 ? pair.w : pair.z;
    }
  }
};

// Adds one tile of keys to dQ and its dS to dBias. The products of dQ run on; WgmmaWait finds them
// done.
template <typename T, int kDim, bool kBiasGradient>
__device__ __forceinline__ void ConsumeKeyTile(const HopperAttentionParams& p,
                                               const QueryStatistics& of, std::uint32_t q,
                                               std::uint32_t k, std::uint32_t bias,
                                               std::uint32_t mask, std::uint32_t release,
                                               float (&dq)[kDim / 2], bool accumulate,
                                               float (&dbias)[kScores]) {
  constexpr int kTileBytes = VectorTile<kDim>::kBytes;
  float s[kScores];
  float dp[kScores];
  std::uint32_t gradients[kHopperTile / 16][4];
  WgmmaFence();
  MultiplyVectors<T, kDim>(s, q, k);
  WgmmaCommit();
  MultiplyVectors<T, kDim>(dp, q + kTileBytes, k + kTileBytes);
  WgmmaCommit();
  WgmmaWait<1>();
  PinRegisters(s);
  if (release != 0 && threadIdx.x % 32 == 0) BarrierArrive(release);
  if (p.bias_by_queries != nullptr) {
    const std::uint32_t mine = bias + threadIdx.x % 128 * 16;
#pragma unroll
    for (int v = 0; v < kScores / 4; ++v) {
      const float4 value = LoadShared4(mine + v * 128 * 16);
      s[4 * v] = fmaf(s[4 * v], p.scale_log2, value.x);
      s[4 * v + 1] = fmaf(s[4 * v + 1], p.scale_log2, value.y);
      s[4 * v + 2] = fmaf(s[4 * v + 2], p.scale_log2, value.z);
      s[4 * v + 3] = fmaf(s[4 * v + 3], p.scale_log2, value.w);
    }
  } else {
#pragma unroll
    for (float& x : s) x *= p.scale_log2;
  }
  if (p.packed_mask.terms != nullptr) AddColumnMask(s, mask);
#pragma unroll
  for (int i = 0; i < kScores; ++i) s[i] = Exp2(s[i] - of.lse[i / 2 % 2]);
  WgmmaWait<0>();
  PinRegisters(dp);
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    dp[i] = s[i] * (dp[i] - of.delta[i / 2 % 2]);
    if constexpr (kBiasGradient) dbias[i] += dp[i];
  }
  RoundWeights<T>(gradients, dp);
  WgmmaFence();
  MultiplyWeights<T, kDim>(dq, gradients, k, accumulate);
  WgmmaCommit();
}

// A tile of this chunk's dBias.
__device__ __forceinline__ void StoreBiasGradient(const HopperAttentionParams& p,
                                                  const QueriesWork& work, int key_tile,
                                                  const float (&dbias)[kScores]) {
  const Fragment mine;
  const int key = key_tile * kHopperTile + mine.column;
  const std::int64_t matrix = (work.chunk * p.groups + work.group) * p.heads + work.head;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = work.query_tile * kHopperTile + mine.row + half * 8;
    if (query >= p.queries) break;
    float* const to = p.dbias + (matrix * p.queries + query) * p.keys + key;
#pragma unroll
    for (int v = 0; v < kHopperTile / 8; ++v) {
      const float2 pair = {dbias[4 * v + 2 * half], dbias[4 * v + 2 * half + 1]};
      if (p.keys % 2 == 0) {
        if (key + v * 8 < p.keys) *reinterpret_cast<float2*>(to + v * 8) = pair;
      } else {
        if (key + v * 8 < p.keys) to[v * 8] = pair.x;
        if (key + v * 8 + 1 < p.keys) to[v * 8 + 1] = pair.y;
      }
    }
  }
}

template <typename T, int kDim, bool kBiasGradient>
__device__ __forceinline__ void ConsumeQueries(const HopperAttentionParams& p,
                                               const QueriesWork& work, std::uint32_t shared,
                                               int consumer) {
  using Layout = QueriesLayout<kDim>;
  constexpr int kTiles = Layout::kTiles;
  const bool signals = threadIdx.x % 32 == 0;
  const int first = work.FirstTile(p, consumer);
  const int tiles = work.LastTile(p, consumer) - first;
  float dbias[kBiasGradient ? kTiles : 1][kScores] = {};
  RingPosition<Layout::kQueryStages> queries;
  RingPosition<Layout::kKeyStages> keys;
  if (p.bias_by_queries != nullptr && tiles > 0)
    BarrierWait(shared + Layout::BiasFull(consumer), 0);
  for (int i = work.first_row; i < work.last_row; ++i) {
    const std::uint32_t q = shared + Layout::kQueries + queries.stage * Layout::kQueryStageBytes;
    BarrierWait(shared + Layout::QueriesFull(queries.stage), queries.FullParity());
    const QueryStatistics of(shared + Layout::kStatistics + queries.stage * kStatisticsTileBytes);
    float dq[kDim / 2] = {};
    std::uint32_t release = 0;  // a stage of keys whose last product may still run
    auto consume = [&](int tile, float(&sum)[kScores]) {
      const int slot = consumer * Layout::kKeyStages + keys.stage;
      BarrierWait(shared + Layout::KeysFull(consumer, keys.stage), keys.FullParity());
      ConsumeKeyTile<T, kDim, kBiasGradient>(
          p, of, q, shared + Layout::kKeys + slot * Layout::kKeyStageBytes,
          shared + Layout::kBias + (consumer * kTiles + tile) * kBiasTileBytes,
          shared + Layout::kMask + slot * kMaskTileBytes, release, dq, tile > 0, sum);
      release = shared + Layout::KeysEmpty(consumer, keys.stage);
      keys.Advance();
    };
    if constexpr (kBiasGradient) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile < tiles) consume(tile, dbias[tile]);
      }
    } else {
      for (int tile = 0; tile < tiles; ++tile) consume(tile, dbias[0]);
    }
    WgmmaWait<0>();
    PinRegisters(dq);
    if (signals) {
      if (release != 0) BarrierArrive(release);
      BarrierArrive(shared + Layout::QueriesEmpty(queries.stage));
    }
    queries.Advance();
    if (p.dq.data == nullptr) continue;
    if (SumQueryGradient<kDim>(dq, shared, work, consumer, i - work.first_row)) {
      const int token = work.query_tile * kHopperTile;
      StoreVectors<T, kDim>(p.dq, GroupRow(p, work.group, i), work.head, token, p.queries - token,
                            p.dim, dq, p.scale);
    }
  }
  if constexpr (kBiasGradient) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile < tiles) StoreBiasGradient(p, work, first + tile, dbias[tile]);
    }
  }
}

template <typename T, int kDim, bool kBiasGradient>
__global__ __launch_bounds__(kHopperThreads, 1) void QueriesKernel(
    const __grid_constant__ HopperAttentionParams p) {
  using Layout = QueriesLayout<kDim>;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Layout::kQueryStages; ++stage) {
      BarrierInit(shared + Layout::QueriesFull(stage), 1);
      BarrierInit(shared + Layout::QueriesEmpty(stage), kConsumers * 4);
    }
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      for (int stage = 0; stage < Layout::kKeyStages; ++stage) {
        BarrierInit(shared + Layout::KeysFull(consumer, stage), 1);
        BarrierInit(shared + Layout::KeysEmpty(consumer, stage), 4);
      }
      BarrierInit(shared + Layout::Received(consumer), 4);
      BarrierInit(shared + Layout::Sendable(consumer), 4);
      BarrierInit(shared + Layout::BiasFull(consumer), 1);
    }
    BarrierInitFence();
  }
  const QueriesWork work(p);
  if (work.blocks > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }
  const int warpgroup = static_cast<int>(threadIdx.x / 128);
  if (warpgroup == kConsumers) {
    GiveUpRegisters<kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x % 128 / 32);
    if (warp < kConsumers) {
      if (ElectOne()) FeedKeyRows<kDim>(p, work, shared, warp);
    } else if (warp == kConsumers) {
      if (ElectOne()) FeedQueryRows<kDim>(p, work, shared);
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    ConsumeQueries<T, kDim, kBiasGradient>(p, work, shared, warpgroup);
  }
  // A block's shared memory must outlive what its neighbour sends to it.
  if (work.blocks > 1) {
    __syncwarp();
    ClusterSync();
  }
}

}  // namespace megafold::cuda
