// dQ and dBias on Hopper.
//
// A block keeps 64 queries of one head and walks over the rows of a group, or of a part of it; each
// of its consumer warpgroups has its own kTiles tiles of 64 keys. dBias of those (queries, keys)
// stays in registers while rows go by, the bias in shared memory: neither is touched again for a
// row. A row's dQ is the sum over the warpgroups of a cluster, whose blocks share the keys out
// among them. Within a block each puts its part into shared memory, and one of them, another for
// each row, adds the parts up a tile later, when all are there; it adds what block r + 1 of the
// cluster sent and sends the sum to block r - 1 through distributed shared memory. Block 0 stores.
// The order of the additions does not depend on who comes first.
//
// S = Q K^T and dP = dO V^T have queries for rows, so dS is in registers as the A operand of
// dQ += dS K. One thread feeds Q, dO and statistics, one for each consumer feeds K, V and mask.
#pragma once

#include "backends/cuda/sm90/evo_attention_queries_copies.cuh"

namespace megafold::cuda {

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

// Puts a consumer's part of dQ of the block's row number `row` where SumQueryGradient finds it.
template <typename Layout>
__device__ __forceinline__ void HandOver(const float (&dq)[Layout::kDim / 2], std::uint32_t shared,
                                         int consumer, int row) {
  BarrierWait(shared + Layout::PartEmpty(consumer), static_cast<std::uint32_t>(row & 1) ^ 1U);
  const std::uint32_t to =
      shared + Layout::kParts + consumer * Layout::kPartBytes + threadIdx.x % 128 * 16;
#pragma unroll
  for (int v = 0; v < Layout::kDim / 8; ++v) {
    StoreShared4(to + v * 128 * 16, {dq[4 * v], dq[4 * v + 1], dq[4 * v + 2], dq[4 * v + 3]});
  }
  BarrierArrive(shared + Layout::PartFull(consumer));
}

// Sums dQ of the block's row number `row` over the consumers of the cluster, for the consumer whose
// turn it is, and stores it or hands it on. It signals the parts as read when it has done all else,
// so whoever hands over the next part knows that this sum is complete: a phase of a barrier below
// never begins before the one before it has been waited for.
template <typename T, typename Layout>
__device__ __forceinline__ void SumQueryGradient(const HopperAttentionParams& p,
                                                 const QueriesWork& work, std::uint32_t shared,
                                                 int consumer, int row) {
  constexpr int kDim = Layout::kDim;
  const auto parity = static_cast<std::uint32_t>(row & 1);
  float dq[kDim / 2] = {};
#pragma unroll
  for (int part = 0; part < Layout::kConsumers; ++part) {
    BarrierWait(shared + Layout::PartFull(part), parity);
    AddFromShared(dq, shared + Layout::kParts + part * Layout::kPartBytes);
  }
  const std::uint32_t buffer = shared + Layout::kReceived;
  if (Layout::kShared && work.rank + 1 < work.blocks) {
    if (threadIdx.x % 128 == 0) BarrierExpect(shared + Layout::SumReceived(), Layout::kPartBytes);
    BarrierWaitCluster(shared + Layout::SumReceived(), parity);
    AddFromShared(dq, buffer);
  }
  const bool stores = work.rank == 0 && p.dq.data != nullptr;
  const std::uint32_t out =
      shared + Layout::kOut + consumer % Layout::kOutTiles * Layout::Tile::kBytes;
  // The tile that left from there two rows ago has long been read.
  if (Layout::kOutTiles > 1 && threadIdx.x % 128 == 0) StoreTensorWaitRead();
  NamedBarrierSync(1 + consumer, 128);
  if (Layout::kShared && work.rank > 0) {
    BarrierWaitCluster(shared + Layout::SumRead(), parity ^ 1U);
    const std::uint32_t remote = RemoteAddress(buffer + threadIdx.x % 128 * 16, work.rank - 1);
    const std::uint32_t received = RemoteAddress(shared + Layout::SumReceived(), work.rank - 1);
#pragma unroll
    for (int v = 0; v < kDim / 8; ++v) {
      StoreRemote(remote + v * 128 * 16, {dq[4 * v], dq[4 * v + 1], dq[4 * v + 2], dq[4 * v + 3]},
                  received);
    }
  } else if (stores) {
    WriteTile<T, kDim>(out, dq, p.scale);
    FenceAsyncProxy();
  }
  PinRegisters(dq);  // the parts have been read
  NamedBarrierSync(1 + consumer, 128);
  if (threadIdx.x % 128 == 0) {
    if (stores) {
      const GroupRow at(p, work.group, work.first_row + row);
      Layout::Tile::Store(p.dq_map, out, work.query_tile * kHopperTile, work.head, at);
      StoreTensorCommit();
      if (Layout::kOutTiles == 1) StoreTensorWaitRead();
    }
    // Not right after the loads: an arrival at another block overtakes loads that still wait for
    // shared memory. By now every thread has used what it loaded.
    if (Layout::kShared && work.rank + 1 < work.blocks) {
      BarrierArriveRemote(shared + Layout::SumRead(), work.rank + 1);
    }
#pragma unroll
    for (int part = 0; part < Layout::kConsumers; ++part) {
      BarrierArrive(shared + Layout::PartEmpty(part));
    }
  }
  __syncwarp();
}

__device__ __forceinline__ std::uint32_t LoadSharedWord(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

// What a thread knows of its two queries in a row: -log2(e) lse, and its two columns of each one's
// statistics, which as the left factor of a product add -delta.
struct QueryStatistics {
  float lse[2];
  std::uint32_t columns[2];
  __device__ __forceinline__ QueryStatistics(std::uint32_t tile, float scale_log2) {
    const auto low = [](std::uint32_t pair) { return __uint_as_float(pair << 16); };
    const auto high = [](std::uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000U); };
    const int row = Fragment().row;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t query = tile + (row + half * 8) * 16;
      const std::uint32_t first = LoadSharedWord(query);
      lse[half] = scale_log2 * (low(first) + high(first) + low(LoadSharedWord(query + 4)));
      columns[half] = LoadSharedWord(query + threadIdx.x % 4 * 4);
    }
  }
};

// Eight rows of {0, 0, 0, 1, 1, 1, 0, 0}: as the right factor they pick -delta out of the
// statistics' columns, as the left one the parts of the mask; a barrier of the block follows.
__device__ __forceinline__ void WritePickingColumns(std::uint32_t tile) {
  if (threadIdx.x < 8) {
    StoreShared4(tile + threadIdx.x * 16,
                 {0.0F, __uint_as_float(0x3F800000U), __uint_as_float(0x3F803F80U), 0.0F});
  }
  FenceAsyncProxy();
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

template <typename T, typename Layout, bool kBiasGradient, bool kMasked>
class QueriesConsumer {
 public:
  __device__ __forceinline__ QueriesConsumer(const HopperAttentionParams& params,
                                             const QueriesWork& work, std::uint32_t shared,
                                             int consumer)
      : p_(params),
        work_(work),
        shared_(shared),
        consumer_(consumer),
        first_(work.FirstTile(params, consumer)),
        tiles_(work.LastTile(params, consumer) - first_),
        bias_at_(shared + Layout::kBias + consumer * Layout::kTiles * kBiasTileBytes +
                 threadIdx.x % 128 * 16) {}

  __device__ __forceinline__ void Run() {
    float dbias[kBiasGradient ? Layout::kTiles : 1][kScores] = {};
    if (p_.bias_by_queries != nullptr && tiles_ > 0) {
      BarrierWait(shared_ + Layout::BiasFull(consumer_), 0);
      LoadBias(s_, bias_at_);
    }
    const int rows = work_.last_row - work_.first_row;
    for (int row = 0; row < rows; ++row) {
      const std::uint32_t q =
          shared_ + Layout::kQueries + queries_.stage * Layout::kQueryStageBytes;
      BarrierWait(shared_ + Layout::QueriesFull(queries_.stage), queries_.FullParity());
      const QueryStatistics of(shared_ + Layout::kStatistics + queries_.stage * kColumnsTileBytes,
                               p_.scale_log2);
      const auto consume = [&](int tile, float(&sum)[kScores]) {
        Consume(of, q, tile, sum);
        if (tile == 0 && row > 0) HandOver<Layout>(dq_, shared_, consumer_, row - 1);
      };
      if constexpr (kBiasGradient) {
#pragma unroll
        for (int tile = 0; tile < Layout::kTiles; ++tile) {
          if (tile < tiles_) consume(tile, dbias[tile]);
        }
      } else {
        for (int tile = 0; tile < tiles_; ++tile) consume(tile, dbias[0]);
      }
      if (tiles_ == 0 && row > 0) HandOver<Layout>(dq_, shared_, consumer_, row - 1);
      BarrierArrive(shared_ + Layout::QueriesEmpty(queries_.stage));
      queries_.Advance();
      if (row > 0) Sum(row - 1);
    }
    Finish(rows - 1);
    if (threadIdx.x % 128 == 0) StoreTensorWaitRead();  // before the block ends
    if constexpr (kBiasGradient) {
#pragma unroll
      for (int tile = 0; tile < Layout::kTiles; ++tile) {
        if (tile < tiles_) StoreBiasGradient(p_, work_, first_ + tile, dbias[tile]);
      }
    }
  }

 private:
  static constexpr int kDim = Layout::kDim;
  static constexpr int kTileBytes = Layout::Tile::kBytes;

  // S, dP and dS of one tile of keys together with dQ of the tile before it, which runs while the
  // exponentials of S are taken. Before the first tile dQ of nothing is computed, from dS = 0.
  __device__ __forceinline__ void Consume(const QueryStatistics& of, std::uint32_t q, int tile,
                                          float (&dbias)[kScores]) {
    const int slot = consumer_ * Layout::kKeyStages + keys_.stage;
    const std::uint32_t k = shared_ + Layout::kKeys + slot * Layout::kKeyStageBytes;
    const bool has_bias = p_.bias_by_queries != nullptr;
    float dp[kScores];
    BarrierWait(shared_ + Layout::KeysFull(consumer_, keys_.stage), keys_.FullParity());
    const std::uint32_t before = release_ == 0 ? k : before_;
    WgmmaFence();
    if constexpr (kMasked) {
      // The same rows {0, 0, 0, 1, 1, 1, 0, 0} pick out the three parts of the mask.
      const std::uint32_t mask = shared_ + Layout::kMask + slot * kColumnsTileBytes;
      Wgmma<__nv_bfloat16, kHopperTile>::Run<Order::kKMajor>(
          s_, SameRowsDescriptor(shared_ + Layout::kPick, shared_ + Layout::kPick),
          HalvesDescriptor(mask, shared_ + Layout::kZeros), has_bias);
    }
    MultiplyVectors<T, kDim>(s_, q, k, kMasked || has_bias);
    WgmmaCommit();
    const std::uint32_t statistics[4] = {0, 0, of.columns[0], of.columns[1]};
    Wgmma<__nv_bfloat16, kHopperTile>::Run<Order::kKMajor>(
        dp, statistics, SameRowsDescriptor(shared_ + Layout::kZeros, shared_ + Layout::kPick),
        false);
    MultiplyVectors<T, kDim>(dp, q + kTileBytes, k + kTileBytes, true);
    MultiplyWeights<T, kDim>(dq_, gradients_, before, accumulate_);
    WgmmaCommit();
    WgmmaWait<1>();
    PinRegisters(s_);
#pragma unroll
    for (int i = 0; i < kScores; ++i) s_[i] = Exp2(fmaf(s_[i], p_.scale_log2, of.lse[i / 2 % 2]));
    WgmmaWait<0>();
    PinRegisters(dp);
    PinRegisters(dq_);
    if (release_ != 0) BarrierArrive(release_);
    release_ = shared_ + Layout::KeysEmpty(consumer_, keys_.stage);
    before_ = k;
    accumulate_ = tile > 0;
    keys_.Advance();
#pragma unroll
    for (int i = 0; i < kScores; ++i) dp[i] *= s_[i];
    // The bias of the next tile, which its scores start from: the block's own, whatever the row.
    // Without a bias what is read has no effect; a branch here would delay it.
    if (has_bias) bias_at_ += tile + 1 < tiles_ ? kBiasTileBytes : -tile * kBiasTileBytes;
    LoadBias(s_, bias_at_);
    if constexpr (kBiasGradient) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) dbias[i] += dp[i];
    }
    RoundWeights<T>(gradients_, dp);
  }

  __device__ __forceinline__ void Sum(int row) const {
    if (row % Layout::kConsumers == consumer_) {
      SumQueryGradient<T, Layout>(p_, work_, shared_, consumer_, row);
    }
  }

  // dQ of the last tile.
  __device__ __forceinline__ void Finish(int row) {
    if (release_ != 0) {
      WgmmaFence();
      MultiplyWeights<T, kDim>(dq_, gradients_, before_, accumulate_);
      WgmmaCommit();
      WgmmaWait<0>();
      PinRegisters(dq_);
    }
    HandOver<Layout>(dq_, shared_, consumer_, row);
    Sum(row);
  }

  const HopperAttentionParams& p_;
  const QueriesWork& work_;
  const std::uint32_t shared_;
  const int consumer_, first_, tiles_;
  std::uint32_t bias_at_;  // the thread's part of the next tile's bias
  RingPosition<Layout::kQueryStages> queries_;
  RingPosition<Layout::kKeyStages> keys_;
  float s_[kScores];  // scores, and between tiles the next one's bias
  float dq_[kDim / 2] = {};
  std::uint32_t gradients_[kHopperTile / 16][4] = {};  // dS of the tile before
  std::uint32_t before_ = 0;                           // its K
  std::uint32_t release_ = 0;                          // the barrier that gives it back
  bool accumulate_ = false;                            // it is not the first of its row
};

template <typename T, typename Layout, bool kBiasGradient, bool kMasked>
__global__ __launch_bounds__(Layout::Roles::kThreads, 1) void QueriesKernel(
    const __grid_constant__ HopperAttentionParams p) {
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Layout::kQueryStages; ++stage) {
      BarrierInit(shared + Layout::QueriesFull(stage), 1);
      BarrierInit(shared + Layout::QueriesEmpty(stage), Layout::Roles::kConsumers * 128);
    }
    for (int consumer = 0; consumer < Layout::kConsumers; ++consumer) {
      for (int stage = 0; stage < Layout::kKeyStages; ++stage) {
        BarrierInit(shared + Layout::KeysFull(consumer, stage), 1);
        BarrierInit(shared + Layout::KeysEmpty(consumer, stage), 128);
      }
      BarrierInit(shared + Layout::PartFull(consumer), 128);
      BarrierInit(shared + Layout::PartEmpty(consumer), 1);
      BarrierInit(shared + Layout::BiasFull(consumer), 1);
    }
    BarrierInit(shared + Layout::SumReceived(), 1);
    BarrierInit(shared + Layout::SumRead(), 1);
    BarrierInitFence();
  }
  ClearColumns(shared + Layout::kZeros);
  WritePickingColumns(shared + Layout::kPick);
  const QueriesWork work(p);
  if (work.blocks > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }
  if (!p.packed) WaitForPrevious();
  const int warpgroup = Warpgroup();
  if (warpgroup == Layout::kConsumers) {
    GiveUpRegisters<Layout::kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x % 128 / 32);
    if (warp < Layout::kConsumers) {
      if (ElectOne()) FeedKeyRows<Layout>(p, work, shared, warp);
    } else if (warp == Layout::kConsumers) {
      if (ElectOne()) FeedQueryRows<Layout>(p, work, shared);
    }
  } else {
    TakeRegisters<Layout::kConsumerRegisters>();
    QueriesConsumer<T, Layout, kBiasGradient, kMasked>(p, work, shared, warpgroup).Run();
  }
  WaitForPrevious();
  // A block's shared memory must outlive what its neighbour sends to it.
  if (work.blocks > 1) {
    __syncwarp();
    ClusterSync();
  }
}

}  // namespace megafold::cuda
