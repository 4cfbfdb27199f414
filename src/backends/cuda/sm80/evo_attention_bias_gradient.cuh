// dBias of EvoAttention with mma.sync: a block owns a tile of queries and keys of one head, keeps
// its bias and its gradient in registers and walks over the rows that share the bias, or over a
// part of them; the parts are added afterwards in a fixed order.
#pragma once

#include <type_traits>

#include "backends/cuda/sm80/evo_attention_backward.cuh"

namespace megafold::cuda {

template <typename T, int kDim, BiasGradientTiling kTiling>
struct BiasGradientLayout {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  static constexpr int kVector = kPitch * static_cast<int>(sizeof(T));
  static constexpr int kQ = 0;
  static constexpr int kDout = kTiling.MBlock() * kVector;
  static constexpr int kK = 2 * kDout;
  static constexpr int kV = kK + kTiling.NBlock() * kVector;
  static constexpr int kMask = kV + kTiling.NBlock() * kVector;
  static constexpr int kLse = kMask + kTiling.NBlock() * 4;
  static constexpr int kDelta = kLse + kTiling.MBlock() * 4;
  static constexpr int kBytes = kDelta + kTiling.MBlock() * 4;
};

// The bias of a warp's fragment; zero outside the tensor.
template <typename T, int kMTiles, int kNTiles>
__device__ __forceinline__ void ReadBias(float (&b)[kMTiles][kNTiles][4], const AttentionParams& p,
                                         std::int64_t group, int head, int query, int key) {
  const AttentionBias& bias = p.bias;
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at_query = query + m * 16 + i / 2 * 8 + lane / 4;
        const int at_key = key + n * 8 + lane % 4 * 2 + i % 2;
        b[m][n][i] = 0.0F;
        if (at_query >= p.queries || at_key >= p.keys) continue;
        const std::int64_t offset =
            group * bias.group + head * bias.head + at_query * bias.query + at_key * bias.key;
        b[m][n][i] = BiasTerm<T>(p, offset);
      }
    }
  }
}

template <typename T, int kDim, typename Tiling>
__global__ __launch_bounds__(
    Tiling::kValue.Threads(),
    Tiling::kValue
        .min_blocks) void AttentionBiasGradientKernel(const __grid_constant__ AttentionParams p) {
  constexpr BiasGradientTiling kTiling = Tiling::kValue;
  using Layout = BiasGradientLayout<T, kDim, kTiling>;
  constexpr int kMTiles = kTiling.m_tiles;
  constexpr int kNTiles = kTiling.n_tiles;
  constexpr int kPitch = Layout::kPitch;
  extern __shared__ __align__(128) char shared[];

  const int query_tiles = (p.queries + kTiling.MBlock() - 1) / kTiling.MBlock();
  const int key_tiles = (p.keys + kTiling.NBlock() - 1) / kTiling.NBlock();
  std::int64_t block = blockIdx.x;
  const int key_tile = static_cast<int>(block % key_tiles) * kTiling.NBlock();
  block /= key_tiles;
  const int query_tile = static_cast<int>(block % query_tiles) * kTiling.MBlock();
  block /= query_tiles;
  const int head = static_cast<int>(block % p.heads);
  block /= p.heads;
  const std::int64_t group = block % p.groups;
  const std::int64_t chunk = block / p.groups;
  const std::int64_t first_row = p.rows * chunk / p.row_chunks;
  const std::int64_t last_row = p.rows * (chunk + 1) / p.row_chunks;

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_query = warp % kTiling.m_warps * kMTiles * 16;
  const int warp_key = warp / kTiling.m_warps * kNTiles * 8;
  float bias[kMTiles][kNTiles][4];
  ReadBias<T>(bias, p, group, head, query_tile + warp_query, key_tile + warp_key);
  float gradient[kMTiles][kNTiles][4] = {};

  // Everything that changes from row to row moves by a row's stride, or to the next batch's first
  // row.
  const int thread = static_cast<int>(threadIdx.x);
  const RowIndex first(p, group, first_row);
  std::int64_t row_in_batch = first.row;
  TileLoader<T, kTiling.MBlock(), kDim, kTiling.Threads()> q_loader(
      RowBase<const T>(p.q, first, head) + query_tile * p.q.token, p.q.token, thread);
  TileLoader<T, kTiling.MBlock(), kDim, kTiling.Threads()> dout_loader(
      RowBase<const T>(p.dout, first, head) + query_tile * p.dout.token, p.dout.token, thread);
  TileLoader<T, kTiling.NBlock(), kDim, kTiling.Threads()> k_loader(
      RowBase<const T>(p.k, first, head) + key_tile * p.k.token, p.k.token, thread);
  TileLoader<T, kTiling.NBlock(), kDim, kTiling.Threads()> v_loader(
      RowBase<const T>(p.v, first, head) + key_tile * p.v.token, p.v.token, thread);
  std::int64_t mask_base = MaskBase(p, first);
  std::int64_t statistic = StatisticBase(p, first, head) + query_tile;
  static_assert(kTiling.Threads() >= kTiling.MBlock() && kTiling.Threads() >= kTiling.NBlock());

  auto fetch = [&](char* stage) {
    auto tile = [&](int offset) { return reinterpret_cast<T*>(stage + offset); };
    q_loader.Load(tile(Layout::kQ), p.q.token, p.queries - query_tile, p.dim, p.q.aligned, thread);
    dout_loader.Load(tile(Layout::kDout), p.dout.token, p.queries - query_tile, p.dim,
                     p.dout.aligned, thread);
    k_loader.Load(tile(Layout::kK), p.k.token, p.keys - key_tile, p.dim, p.k.aligned, thread);
    v_loader.Load(tile(Layout::kV), p.v.token, p.keys - key_tile, p.dim, p.v.aligned, thread);
    if (thread < kTiling.NBlock()) {
      reinterpret_cast<float*>(stage + Layout::kMask)[thread] =
          MaskTerm<T>(p, mask_base, key_tile + thread);
    }
    if (thread < kTiling.MBlock()) {
      const int valid = query_tile + thread < p.queries ? 4 : 0;
      CopyAsync4(SharedAddress(stage + Layout::kLse + thread * 4), p.lse + statistic + thread,
                 valid);
      CopyAsync4(SharedAddress(stage + Layout::kDelta + thread * 4), p.delta + statistic + thread,
                 valid);
    }
    CopyAsyncCommit();
    const bool wraps = ++row_in_batch == p.batch_rows;
    if (wraps) row_in_batch = 0;
    auto step = [&](std::int64_t batch, std::int64_t row) {
      return wraps ? batch - (p.batch_rows - 1) * row : row;
    };
    q_loader.Advance(step(p.q.batch, p.q.row));
    dout_loader.Advance(step(p.dout.batch, p.dout.row));
    k_loader.Advance(step(p.k.batch, p.k.row));
    v_loader.Advance(step(p.v.batch, p.v.row));
    mask_base += step(p.mask.batch, p.mask.row);
    statistic += static_cast<std::int64_t>(p.heads) * p.queries;
  };
  auto stage_of = [&](std::int64_t row) {
    return shared + (kTiling.stages == 2 ? (row & 1) * Layout::kBytes : 0);
  };

#pragma unroll 1
  for (std::int64_t row = first_row - (kTiling.stages - 1); row < last_row; ++row) {
    if (kTiling.stages == 1) {
      __syncthreads();
      fetch(stage_of(row));
    }
    CopyAsyncWait<0>();
    __syncthreads();
    if (kTiling.stages == 2 && row + 1 < last_row) fetch(stage_of(row + 1));
    if (row < first_row) continue;
    const char* stage = stage_of(row);
    const T* q = reinterpret_cast<const T*>(stage + Layout::kQ) + warp_query * kPitch;
    const T* dout = reinterpret_cast<const T*>(stage + Layout::kDout) + warp_query * kPitch;
    const T* k = reinterpret_cast<const T*>(stage + Layout::kK) + warp_key * kPitch;
    const T* v = reinterpret_cast<const T*>(stage + Layout::kV) + warp_key * kPitch;
    const float* mask = reinterpret_cast<const float*>(stage + Layout::kMask) + warp_key;

    float lse[kMTiles][2], delta[kMTiles][2];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = warp_query + m * 16 + half * 8 + LaneId() / 4;
        const bool in_tensor = query_tile + query < p.queries;
        lse[m][half] =
            in_tensor ? reinterpret_cast<const float*>(stage + Layout::kLse)[query] : kInfinity;
        delta[m][half] = reinterpret_cast<const float*>(stage + Layout::kDelta)[query];
      }
    }
    float s[kMTiles][kNTiles][4] = {};
    float dp[kMTiles][kNTiles][4] = {};
    MultiplyShared<T, kDim, kMTiles, kNTiles, kPitch>(s, q, k, p.allow_tf32);
    MultiplyShared<T, kDim, kMTiles, kNTiles, kPitch>(dp, dout, v, p.allow_tf32);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = fmaf(s[m][n][i], p.scale, bias[m][n][i]);
      }
    }
    if (AnyTerm<kNTiles * 8>(mask)) AddColumnTerm(s, mask);
    ScoreGradientByQuery<T>(s, dp, lse, delta);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) gradient[m][n][i] += dp[m][n][i];
      }
    }
  }

  const int query = query_tile + warp_query;
  const int key = key_tile + warp_key;
  float* to =
      p.dbias + (((chunk * p.groups + group) * p.heads + head) * p.queries + query) * p.keys + key;
  // Columns may end on an odd count, so single elements are stored.
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = m * 16 + i / 2 * 8 + lane / 4;
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        if (query + row < p.queries && key + column < p.keys) {
          to[static_cast<std::int64_t>(row) * p.keys + column] = gradient[m][n][i];
        }
      }
    }
  }
}

template <typename T, int kDim, BiasGradientTiling kTiling>
void LaunchBiasGradient(const AttentionParams& p, cudaStream_t stream) {
  const std::int64_t query_tiles = (p.queries + kTiling.MBlock() - 1) / kTiling.MBlock();
  const std::int64_t key_tiles = (p.keys + kTiling.NBlock() - 1) / kTiling.NBlock();
  LaunchKernel("evo_attention backward dBias (cuda sm80)",
               AttentionBiasGradientKernel<T, kDim, BiasGradientTilingOf<kTiling>>,
               query_tiles * key_tiles * p.heads * p.groups * p.row_chunks, kTiling.Threads(),
               kTiling.stages * BiasGradientLayout<T, kDim, kTiling>::kBytes, stream, p);
}

}  // namespace megafold::cuda
