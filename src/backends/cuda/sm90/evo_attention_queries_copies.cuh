// dQ and dBias on Hopper: shared memory of a block, what it works on, and the threads that copy for
// the warpgroups that compute (evo_attention_queries.cuh).
#pragma once

#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

// `kAlone`: the block has all keys, and a layout of its own.
template <int kPaddedDim, bool kAlone>
struct QueriesLayout {
  static constexpr int kDim = kPaddedDim;
  using Tile = VectorTile<kDim>;
  using Roles = Roles<kQueriesConsumers>;
  static constexpr int kConsumerRegisters = kAlone ? 240 : Roles::kConsumerRegisters;
  static constexpr int kProducerRegisters = kAlone ? 24 : Roles::kProducerRegisters;
  static constexpr int kConsumers = Roles::kConsumers;
  static constexpr int kTiles = BiasGradientTiles(kDim, kAlone);  // of keys, a warpgroup
  static constexpr int kQueryStages = 2;
  static constexpr int kKeyStages = kDim <= 32 ? 4 : kDim <= 48 ? 3 : 2;  // a warpgroup
  static constexpr bool kShared = !kAlone;  // other blocks may have keys too
  static constexpr int kQueryStageBytes = 2 * Tile::kBytes;
  static constexpr int kKeyStageBytes = 2 * Tile::kBytes;
  static constexpr int kPartBytes = kDim / 2 * 128 * 4;  // of dQ

  static constexpr int kBias = 0;
  static constexpr int kKeys = kBias + kConsumers * kTiles * kBiasTileBytes;
  static constexpr int kQueries = kKeys + kConsumers * kKeyStages * kKeyStageBytes;
  static constexpr int kStatistics = kQueries + kQueryStages * kQueryStageBytes;
  static constexpr int kMask = kStatistics + kQueryStages * kColumnsTileBytes;
  static constexpr int kZeros = kMask + kConsumers * kKeyStages * kColumnsTileBytes;
  static constexpr int kPick = kZeros + kColumnsTileBytes;
  static constexpr int kParts = kPick + 256;
  static constexpr int kReceived = kParts + kConsumers * kPartBytes;
  static constexpr int kAfterSums = kReceived + (kShared ? kPartBytes : 0);
  // Tiles of dQ that leave: one for each consumer where they fit. A block alone has no room for
  // any: the tile takes the place of a part that has been added. Tiles start where their swizzle
  // does, on 1024 bytes, or with rows of 32 bytes on 256.
  static constexpr int kOutTiles = kDim <= 32 ? kConsumers : 1;
  static constexpr int kOut = kAlone ? kParts : (kAfterSums + 1023) / 1024 * 1024;
  static_assert(kOut % (8 * Tile::kPitch) == 0);
  static constexpr int kBarriers = kAlone ? kAfterSums : kOut + kOutTiles * Tile::kBytes;

  static __device__ __forceinline__ std::uint32_t Barrier(int index) {
    return kBarriers + index * 8;
  }
  static __device__ __forceinline__ std::uint32_t QueriesFull(int stage) {
    return Barrier(stage * 2);
  }
  static __device__ __forceinline__ std::uint32_t QueriesEmpty(int stage) {
    return Barrier(stage * 2 + 1);
  }
  static constexpr int kFirstKeys = kQueryStages * 2;
  static __device__ __forceinline__ std::uint32_t KeysFull(int consumer, int stage) {
    return Barrier(kFirstKeys + (consumer * kKeyStages + stage) * 2);
  }
  static __device__ __forceinline__ std::uint32_t KeysEmpty(int consumer, int stage) {
    return KeysFull(consumer, stage) + 8;
  }
  // A consumer's part of a row's dQ is in shared memory; it has been read.
  static constexpr int kFirstParts = kFirstKeys + kConsumers * kKeyStages * 2;
  static __device__ __forceinline__ std::uint32_t PartFull(int consumer) {
    return Barrier(kFirstParts + consumer * 2);
  }
  static __device__ __forceinline__ std::uint32_t PartEmpty(int consumer) {
    return Barrier(kFirstParts + consumer * 2 + 1);
  }
  // The next block's sum has arrived; the sum that this block sent has been read.
  static constexpr int kFirstSums = kFirstParts + kConsumers * 2;
  static __device__ __forceinline__ std::uint32_t SumReceived() { return Barrier(kFirstSums); }
  static __device__ __forceinline__ std::uint32_t SumRead() { return Barrier(kFirstSums + 1); }
  static constexpr int kFirstBias = kFirstSums + 2;
  static __device__ __forceinline__ std::uint32_t BiasFull(int consumer) {
    return Barrier(kFirstBias + consumer);
  }
  static constexpr int kBytes = kBarriers + (kFirstBias + kConsumers) * 8 + 1024;  // alignment
  static_assert(kBytes <= 227 * 1024);
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
    return min((rank * kQueriesConsumers + consumer) * p.consumer_tiles, p.key_tiles);
  }
  __device__ __forceinline__ int LastTile(const HopperAttentionParams& p, int consumer) const {
    return FirstTile(p, consumer + 1);
  }
};

template <typename Layout>
__device__ __forceinline__ void FeedQueryRows(const HopperAttentionParams& p,
                                              const QueriesWork& work, std::uint32_t shared) {
  RingPosition<Layout::kQueryStages> ring;
  for (int i = work.first_row; i < work.last_row; ++i) {
    const GroupRow at(p, work.group, i);
    const std::uint32_t full = shared + Layout::QueriesFull(ring.stage);
    const std::uint32_t q = shared + Layout::kQueries + ring.stage * Layout::kQueryStageBytes;
    BarrierWait(shared + Layout::QueriesEmpty(ring.stage), ring.EmptyParity());
    BarrierExpect(full, Layout::kQueryStageBytes + kColumnsTileBytes);
    Layout::Tile::Copy(q, p.q_map, work.query_tile * kHopperTile, work.head, at, full);
    Layout::Tile::Copy(q + Layout::Tile::kBytes, p.dout_map, work.query_tile * kHopperTile,
                       work.head, at, full);
    CopyBulk(shared + Layout::kStatistics + ring.stage * kColumnsTileBytes,
             StatisticsTile(p, at, work.head, work.query_tile), kColumnsTileBytes, full);
    ring.Advance();
  }
}

template <typename Layout>
__device__ __forceinline__ void FeedKeyRows(const HopperAttentionParams& p, const QueriesWork& work,
                                            std::uint32_t shared, int consumer) {
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
    const char* const mask = p.mask_columns.tiles == nullptr ? nullptr : MaskColumnsRow(p, at);
    for (int tile = first; tile < last; ++tile) {
      const int slot = consumer * Layout::kKeyStages + ring.stage;
      const std::uint32_t full = shared + Layout::KeysFull(consumer, ring.stage);
      const std::uint32_t k = shared + Layout::kKeys + slot * Layout::kKeyStageBytes;
      BarrierWait(shared + Layout::KeysEmpty(consumer, ring.stage), ring.EmptyParity());
      BarrierExpect(full, Layout::kKeyStageBytes + (mask != nullptr ? kColumnsTileBytes : 0));
      Layout::Tile::Copy(k, p.k_map, tile * kHopperTile, work.head, at, full);
      Layout::Tile::Copy(k + Layout::Tile::kBytes, p.v_map, tile * kHopperTile, work.head, at,
                         full);
      if (mask != nullptr) {
        CopyBulk(shared + Layout::kMask + slot * kColumnsTileBytes,
                 mask + static_cast<std::int64_t>(tile) * kColumnsTileBytes, kColumnsTileBytes,
                 full);
      }
      ring.Advance();
    }
  }
}

}  // namespace megafold::cuda
