// dK and dV on Hopper.
//
// A block keeps 64 keys of one head, of several rows of a group for each consumer warpgroup, and
// walks over tiles of 64 queries. Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T, so
// that P^T and dS^T are in registers as the A operand of dV += P^T dO and dK += dS^T Q: nothing but
// the operands passes through shared memory, whose bandwidth is what binds. Hence a warpgroup reads
// a tile of bias once for all its rows. One thread of the last warpgroup feeds the ring of query
// tiles. Blocks are persistent: the next keys arrive while the last products of these run.
#pragma once

#include <type_traits>

#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

template <int kDim>
struct KeysLayout {
  using Tile = VectorTile<kDim>;
  using Roles = Roles<2>;
  static constexpr int kConsumerRows = kDim <= 32 ? 2 : 1;  // what the registers hold
  static constexpr int kRows = Roles::kConsumers * kConsumerRows;
  static constexpr int kStages = 3;
  static constexpr int kKeyStages = 2;
  // A stage of queries: Q, dO of each row, bias, statistics of each row.
  static constexpr int kQueriesBytes = kRows * 2 * Tile::kBytes;
  static constexpr int kBias = kQueriesBytes;
  static constexpr int kStatistics = kBias + kBiasTileBytes;
  static constexpr int kStageBytes = kStatistics + kRows * kColumnsTileBytes;
  // The next keys: K, V of each row; dK and dV leave from there.
  static constexpr int kKeyBytes = kRows * 2 * Tile::kBytes;
  static constexpr int kKeys = kStages * kStageBytes;
  static constexpr int kZeros = kKeys + kKeyStages * kKeyBytes;  // second half of all columns
  static constexpr int kBarriers = kZeros + kColumnsTileBytes;
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
  using Tile = typename Layout::Tile;
  constexpr int kTileBytes = Tile::kBytes;
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
      Tile::Copy(k, p.k_map, token, work.head, rows[r], keys_full);
      Tile::Copy(k + kTileBytes, p.v_map, token, work.head, rows[r], keys_full);
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
      BarrierExpect(full, Layout::kQueriesBytes + kRows * kColumnsTileBytes +
                              (bias != nullptr ? kBiasTileBytes : 0));
      if (bias != nullptr) {
        CopyBulk(stage + Layout::kBias, bias + tile * (kBiasTileBytes / 4), kBiasTileBytes, full);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::uint32_t q = stage + r * 2 * kTileBytes;
        Tile::Copy(q, p.q_map, tile * kHopperTile, work.head, rows[r], full);
        Tile::Copy(q + kTileBytes, p.dout_map, tile * kHopperTile, work.head, rows[r], full);
        CopyBulk(stage + Layout::kStatistics + r * kColumnsTileBytes,
                 StatisticsTile(p, rows[r], work.head, tile), kColumnsTileBytes, full);
      }
      queries.Advance();
    }
  }
}

// The three parts of the mask of a thread's two keys, as they lie in memory: {1, high}, {middle,
// low}. Only the last lane of a quad has a use for them.
struct KeyMask {
  uint2 parts[2] = {};

  KeyMask() = default;
  __device__ __forceinline__ KeyMask(const HopperAttentionParams& p, const GroupRow& at,
                                     int key_tile) {
    if (p.mask_columns.tiles == nullptr || threadIdx.x % 4 != 3) return;
    const char* const tile = MaskColumnsRow(p, at) + key_tile * kMaskColumnsBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* const words =
          reinterpret_cast<const std::uint32_t*>(tile + (Fragment().row + half * 8) * 16);
      parts[half] = {words[1], words[2]};
    }
  }
};

// A thread's columns of the rows (keys) that the statistics' columns are multiplied by.
struct KeyColumns {
  std::uint32_t scores[2];  // {1, 1, 1, 0, 0, 0, high, middle}: -lse and the key's mask
  std::uint32_t gradients;  // {0, 0, 0, 1, 1, 1, 0, 0}: -delta

  KeyColumns() = default;
  __device__ __forceinline__ explicit KeyColumns(const KeyMask& mask) {
    constexpr std::uint32_t kOne = 0x3F80;  // bfloat16
    const int lane = static_cast<int>(threadIdx.x % 4);
    gradients = lane == 1 ? kOne << 16 : lane == 2 ? kOne << 16 | kOne : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t high_middle = mask.parts[half].x >> 16 | mask.parts[half].y << 16;
      scores[half] = lane == 0 ? kOne << 16 | kOne : lane == 1 ? kOne : lane == 3 ? high_middle : 0;
    }
  }
};

template <typename T, int kDim>
class KeysConsumer {
 public:
  __device__ __forceinline__ KeysConsumer(const HopperAttentionParams& params, std::uint32_t shared,
                                          int consumer)
      : p_(params), shared_(shared), consumer_(consumer) {}

  __device__ __forceinline__ void Run() {
    const int count = KeysWork<Layout::kRows>::Count(p_);
    if (consumer_ == 1) NamedBarrierArrive(kTurnBarrier, 256);  // the other's first turn
    int index = static_cast<int>(blockIdx.x);
    if (index < count) LoadMask(KeysWork<Layout::kRows>(p_, index));
    while (index < count) {
      const KeysWork<Layout::kRows> work(p_, index);
#pragma unroll
      for (int r = 0; r < kRows; ++r) columns_[r] = KeyColumns(mask_[r]);
      index += static_cast<int>(gridDim.x);
      if (index < count) LoadMask(KeysWork<Layout::kRows>(p_, index));
      Consume(work);
    }
  }

 private:
  using Layout = KeysLayout<kDim>;
  static constexpr int kTileBytes = Layout::Tile::kBytes;
  static constexpr int kRows = Layout::kConsumerRows;

  // The mask of the next keys is on its way while these are worked on.
  __device__ __forceinline__ void LoadMask(const KeysWork<Layout::kRows>& work) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      mask_[r] = KeyMask(p_, work.Row(p_, consumer_ * kRows + r), work.key_tile);
    }
  }

  __device__ __forceinline__ void Consume(const KeysWork<Layout::kRows>& work) {
    const std::uint32_t keys_empty = shared_ + Layout::KeysEmpty(keys_.stage);
    k_ = shared_ + Layout::kKeys + keys_.stage * Layout::kKeyBytes +
         consumer_ * kRows * 2 * kTileBytes;
    BarrierWait(shared_ + Layout::KeysFull(keys_.stage), keys_.FullParity());
    keys_.Advance();
    ConsumeTile(0, std::true_type{});
    for (int tile = 1; tile < p_.query_tiles; ++tile) ConsumeTile(tile, std::false_type{});
    WgmmaFence();
    MultiplyBefore<kRows - 1>(p_.query_tiles > 1);
    WgmmaCommit();
    WgmmaWait<0>();
    if (threadIdx.x % 32 == 0) BarrierArrive(used_);
      // dK and dV take the places of K and V.
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      PinRegisters(dk_[r]);
      PinRegisters(dv_[r]);
      WriteTile<T, kDim>(k_ + r * 2 * kTileBytes, dk_[r], p_.scale);
      WriteTile<T, kDim>(k_ + r * 2 * kTileBytes + kTileBytes, dv_[r], 1.0F);
    }
    FenceAsyncProxy();
    NamedBarrierSync(kStoreBarrier + consumer_, 128);
    if (threadIdx.x % 128 == 0) {
      Store(work);
      BarrierArrive(keys_empty);
    }
    __syncwarp();
  }

  // Sends the tiles of dK and dV off, and waits until they have been read.
  __device__ __forceinline__ void Store(const KeysWork<Layout::kRows>& work) const {
    const int key = work.key_tile * kHopperTile;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = consumer_ * kRows + r;
      if (work.row + row >= p_.rows) break;
      const GroupRow at = work.Row(p_, row);
      const std::uint32_t k = k_ + r * 2 * kTileBytes;
      if (p_.dk.data != nullptr) Layout::Tile::Store(p_.dk_map, k, key, work.head, at);
      if (p_.dv.data != nullptr) Layout::Tile::Store(p_.dv_map, k + kTileBytes, key, work.head, at);
    }
    StoreTensorCommit();
    StoreTensorWaitRead();
  }

  // dV and dK of the step before, which was one of row kRow.
  template <int kRow>
  __device__ __forceinline__ void MultiplyBefore(bool accumulate) {
    MultiplyWeights<T, kDim>(dv_[kRow], weights_, before_ + kTileBytes, accumulate);
    MultiplyWeights<T, kDim>(dk_[kRow], gradients_, before_, accumulate);
  }

  template <bool kFirst>
  __device__ __forceinline__ void ConsumeTile(int tile, std::bool_constant<kFirst>) {
    const std::uint32_t stage = shared_ + queries_.stage * Layout::kStageBytes;
    BarrierWait(shared_ + Layout::Full(queries_.stage), queries_.FullParity());
    if (p_.bias_by_keys != nullptr) {
      LoadBias(bias_, stage + Layout::kBias + threadIdx.x % 128 * 16);
    } else {
#pragma unroll
      for (float& b : bias_) b = 0.0F;
    }
    Step<0, !kFirst>(stage, tile);
    if constexpr (kRows == 2) Step<1, true>(stage, tile);
    used_ = shared_ + Layout::Empty(queries_.stage);
    queries_.Advance();
  }

  // S and dP of one row and tile together with dV and dK of the step before: these run while the
  // exponentials of S are taken. Operands of the matrix unit may only be written while nothing is
  // queued there, and a wait for part of what is queued must follow it without a branch between.
  template <int kRow, bool kBefore>
  __device__ __forceinline__ void Step(std::uint32_t stage, int tile) {
    constexpr int kRowBefore = (kRow + kRows - 1) % kRows;
    const int row = consumer_ * kRows + kRow;
    const std::uint32_t q = stage + row * 2 * kTileBytes;
    const std::uint32_t k = k_ + kRow * 2 * kTileBytes;
    const std::uint64_t columns = HalvesDescriptor(
        stage + Layout::kStatistics + row * kColumnsTileBytes, shared_ + Layout::kZeros);
    float s[kScores];
    float dp[kScores];
    WgmmaFence();
    MultiplyColumns(s, columns_[kRow].scores[0], columns_[kRow].scores[1], columns, false);
    MultiplyVectors<T, kDim>(s, k, q, true);
    WgmmaCommit();
    MultiplyColumns(dp, columns_[kRow].gradients, columns_[kRow].gradients, columns, false);
    MultiplyVectors<T, kDim>(dp, k + kTileBytes, q + kTileBytes, true);
    if constexpr (kBefore) MultiplyBefore<kRowBefore>(tile > (kRow == 0 ? 1 : 0));
    WgmmaCommit();
    WgmmaWait<1>();
    PinRegisters(s);
    // Exponentials of one warpgroup at a time: in step the two would first wait for each other's
    // exponentials, then for each other's products.
    NamedBarrierSync(kTurnBarrier + consumer_, 256);
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] = Exp2(fmaf(s[i], p_.scale_log2, bias_[i]));
    WgmmaWait<0>();
    PinRegisters(s);  // rounded from here on: the products of the step before read `weights_`
    PinRegisters(dp);
    if (kBefore && kRow == 0 && threadIdx.x % 32 == 0) BarrierArrive(used_);
    before_ = q;
    RoundWeights<T>(weights_, s);
#pragma unroll
    for (int i = 0; i < kScores; ++i) dp[i] *= s[i];
    RoundWeights<T>(gradients_, dp);
    NamedBarrierArrive(kTurnBarrier + 1 - consumer_, 256);
  }

  // Barriers of the block: a warpgroup's turn, and its own for dK and dV.
  static constexpr int kTurnBarrier = 1;
  static constexpr int kStoreBarrier = kTurnBarrier + Layout::Roles::kConsumers;

  const HopperAttentionParams& p_;
  const std::uint32_t shared_;
  const int consumer_;
  RingPosition<Layout::kStages> queries_;
  RingPosition<Layout::kKeyStages> keys_;
  KeyColumns columns_[kRows];
  KeyMask mask_[kRows];  // of the next keys
  float dk_[kRows][kDim / 2], dv_[kRows][kDim / 2];
  float bias_[kScores];
  std::uint32_t weights_[kHopperTile / 16][4];  // P and dS of the step before
  std::uint32_t gradients_[kHopperTile / 16][4];
  std::uint32_t k_ = 0;       // K and V of the rows
  std::uint32_t before_ = 0;  // Q and dO of the step before
  std::uint32_t used_ = 0;    // the barrier that gives its stage back
};

template <typename T, int kDim>
__global__ __launch_bounds__(KeysLayout<kDim>::Roles::kThreads,
                             1) void KeysKernel(const __grid_constant__ HopperAttentionParams p) {
  using Layout = KeysLayout<kDim>;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Layout::kStages; ++stage) {
      BarrierInit(shared + Layout::Full(stage), 1);
      BarrierInit(shared + Layout::Empty(stage), Layout::Roles::kConsumers * 4);
    }
    for (int stage = 0; stage < Layout::kKeyStages; ++stage) {
      BarrierInit(shared + Layout::KeysFull(stage), 1);
      BarrierInit(shared + Layout::KeysEmpty(stage), Layout::Roles::kConsumers);
    }
    BarrierInitFence();
  }
  ClearColumns(shared + Layout::kZeros);
  __syncthreads();
  // dQ and dBias, which come next, only need what was packed before this kernel.
  WaitForPrevious();
  LetNextBegin();
  const int warpgroup = Warpgroup();
  if (warpgroup == Layout::Roles::kConsumers) {
    GiveUpRegisters<Layout::Roles::kProducerRegisters>();
    if (threadIdx.x % 128 < 32 && ElectOne()) FeedKeys<kDim>(p, shared);
  } else {
    TakeRegisters<Layout::Roles::kConsumerRegisters>();
    KeysConsumer<T, kDim>(p, shared, warpgroup).Run();
  }
}

}  // namespace megafold::cuda
