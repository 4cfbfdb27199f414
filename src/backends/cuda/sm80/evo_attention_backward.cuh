// Backward of EvoAttention with mma.sync, in kernels that each own what they write, so that nothing
// is added atomically and a result is the same bit for bit in every run:
//   keys     a block owns keys of one head and a few rows and walks over the queries: dK, dV
//   queries  a block owns queries and walks over the keys: dQ
//   bias     a block owns a (queries, keys) tile of one head and walks over the rows: dBias, in
//   parts
// Each recomputes p = exp(x - lse) and ds = p (dp - delta), dp = <dO, V>.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/sm80/evo_attention_stream.cuh"

namespace megafold::cuda {

// p and ds for fragments whose rows are queries: s becomes p, dp becomes ds.
template <typename T, int kMTiles, int kNTiles>
__device__ __forceinline__ void ScoreGradientByQuery(float (&s)[kMTiles][kNTiles][4],
                                                     float (&dp)[kMTiles][kNTiles][4],
                                                     const float (&lse)[kMTiles][2],
                                                     const float (&delta)[kMTiles][2]) {
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = ExpDifference<T>(s[m][n][i], lse[m][i / 2]);
        dp[m][n][i] = s[m][n][i] * (dp[m][n][i] - delta[m][i / 2]);
      }
    }
  }
}

template <typename T, int kDim, typename Tiling>
__global__ __launch_bounds__(
    Tiling::kValue.Threads(),
    Tiling::kValue
        .min_blocks) void AttentionBackwardQueriesKernel(const __grid_constant__ AttentionParams p,
                                                         int stage_bytes) {
  constexpr AttentionTiling kTiling = Tiling::kValue;
  using Layout = StreamLayout<T, kDim, kTiling>;
  constexpr int kMTiles = kTiling.m_tiles;
  constexpr int kNTiles = kTiling.n_step / 8;
  constexpr int kPitch = kTilePitch<T, kDim>;
  extern __shared__ __align__(128) char shared[];

  const BlockPlace place(p, p.queries, kTiling.MBlock(), kTiling.row_warps);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / kTiling.m_warps;
  const int warp_query = warp % kTiling.m_warps * kMTiles * 16;
  const int first_query = place.tile + warp_query;
  const bool inside = place.row + warp_row < p.rows;
  const bool active = inside && first_query < p.queries;
  const RowIndex at(p, place.group, inside ? place.row + warp_row : place.row);
  const int count = active ? p.queries - first_query : 0;

  typename Mma<T>::A q[kMTiles][kDim / 16], dout[kMTiles][kDim / 16];
  LoadStationary<T>(q, RowBase<const T>(p.q, at, place.head) + first_query * p.q.token, p.q.token,
                    count, p.dim, p.q.aligned);
  LoadStationary<T>(dout, RowBase<const T>(p.dout, at, place.head) + first_query * p.dout.token,
                    p.dout.token, count, p.dim, p.dout.aligned);
  float lse[kMTiles][2], delta[kMTiles][2];
  const std::int64_t statistic = StatisticBase(p, at, place.head) + first_query;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = m * 16 + half * 8 + LaneId() / 4;
      lse[m][half] = query < count ? p.lse[statistic + query] : kInfinity;
      delta[m][half] = query < count ? p.delta[statistic + query] : 0.0F;
    }
  }
  float dq[kMTiles][kDim / 8][4] = {};

  const int tiles = (p.keys + kTiling.n_block - 1) / kTiling.n_block;
  StreamLoader<T, kDim, kTiling> stream(p.k, p.v, at, place.head, warp_row, inside);
  BiasLoader<T, kTiling.MBlock(), kTiling.n_block, FragmentRows::kQueries, kTiling.Threads()> bias(
      p, place.group, place.head, place.tile, 0, static_cast<int>(threadIdx.x));
  MaskLoader<T, kTiling> mask(p, at, warp_row);
  mask.Read(p, 0);
  // One step ahead of the tile that is worked on.
#pragma unroll 1
  for (int tile = -1; tile < tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();
    if (tile + 1 < tiles) {
      char* stage = shared + ((tile + 1) & 1) * stage_bytes;
      const int key = (tile + 1) * kTiling.n_block;
      stream.Next(stage, p.k, p.v, p.keys - key, p.dim);
      bias.Load(stage + Layout::kBias, p.bias, p.queries - place.tile, p.keys - key,
                static_cast<int>(threadIdx.x));
      bias.Advance(p.bias, 0, kTiling.n_block);
      mask.Store(p, reinterpret_cast<float*>(stage + Layout::kTerms));
      CopyAsyncCommit();
      mask.Read(p, key + kTiling.n_block);
    }
    if (tile < 0 || !active) continue;
    const char* stage = shared + (tile & 1) * stage_bytes;
    const T* k = reinterpret_cast<const T*>(stage + Layout::kFirst + warp_row * Layout::kTile);
    const T* v = reinterpret_cast<const T*>(stage + Layout::kSecond + warp_row * Layout::kTile);
    const float* terms =
        reinterpret_cast<const float*>(stage + Layout::kTerms) + warp_row * kTiling.n_block;
    const bool masked = AnyTerm<kTiling.n_block>(terms);
#pragma unroll 1
    for (int step = 0; step < kTiling.n_block; step += kTiling.n_step) {
      float s[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(s, q, k + step * kPitch, p.allow_tf32);
      float dp[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(dp, dout, v + step * kPitch,
                                                             p.allow_tf32);
      ApplyBias<T, kMTiles, kNTiles, kTiling.n_block>(s, stage + Layout::kBias, warp_query, step,
                                                      p.bias.kind, p.scale);
      if (masked) AddColumnTerm(s, terms + step);
      ScoreGradientByQuery<T>(s, dp, lse, delta);
      MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(dq, dp, k + step * kPitch,
                                                            p.allow_tf32);
    }
  }
  if (!active) return;
  float factor[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) factor[m][0] = factor[m][1] = p.scale;
  StoreRows(RowBase<T>(p.dq, at, place.head) + first_query * p.dq.token, p.dq.token, p.dq.aligned,
            count, p.dim, dq, factor);
}

// x = scale * s + bias + mask, p and ds for fragments whose rows are keys and whose columns are
// queries. `bias` points into a tile whose rows are queries; lse and delta at column 0.
template <typename T, int kMTiles, int kNTiles, int kKeys>
__device__ __forceinline__ void ScoreGradientByKey(
    float (&s)[kMTiles][kNTiles][4], float (&dp)[kMTiles][kNTiles][4], const void* tile, int row,
    int column, TermKind kind, float scale, const float (&mask)[kMTiles][2], bool masked,
    const float* lse, const float* delta, int queries) {
  const int lane = LaneId();
  auto add_bias = [&]<typename Element>(const Element* base) {
    constexpr int kPitch = BiasPitch(FragmentRows::kKeys, kKeys, sizeof(Element));
    const Element* source = base + (row + (lane % 4) * 2) * kPitch + column + lane / 4;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Element element = source[(n * 8 + i % 2) * kPitch + m * 16 + i / 2 * 8];
          s[m][n][i] = fmaf(s[m][n][i], scale, static_cast<float>(element));
        }
      }
    }
  };
  if (kind == TermKind::kFloat32) {
    add_bias(static_cast<const float*>(tile));
  } else if (kind == TermKind::kStorage) {
    add_bias(static_cast<const T*>(tile));
  } else {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] *= scale;
      }
    }
  }
  if (masked) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] += mask[m][i / 2];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kNTiles; ++n) {
    const int column = n * 8 + (lane % 4) * 2;
    const float2 lse_pair = *reinterpret_cast<const float2*>(lse + column);
    const float2 delta_pair = *reinterpret_cast<const float2*>(delta + column);
    // Past the last query lse is filled with 0, which a large mask term could turn into inf * 0.
    const float lses[2] = {column < queries ? lse_pair.x : kInfinity,
                           column + 1 < queries ? lse_pair.y : kInfinity};
    const float deltas[2] = {delta_pair.x, delta_pair.y};
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = ExpDifference<T>(s[m][n][i], lses[i % 2]);
        dp[m][n][i] = s[m][n][i] * (dp[m][n][i] - deltas[i % 2]);
      }
    }
  }
}

// lse and delta of a tile of one row's queries, by the row's warps: [lse, delta][n_block] floats.
template <AttentionTiling kTiling>
__device__ __forceinline__ void LoadStatistics(float* terms, const AttentionParams& p,
                                               std::int64_t start, int count) {
  constexpr int kThreads = kTiling.m_warps * 32;
#pragma unroll
  for (int i = 0; i < (kTiling.n_block + kThreads - 1) / kThreads; ++i) {
    const int query = static_cast<int>(threadIdx.x) % kThreads + i * kThreads;
    if (query >= kTiling.n_block) break;
    const int valid = query < count ? 4 : 0;
    CopyAsync4(SharedAddress(terms + query), p.lse + start + query, valid);
    CopyAsync4(SharedAddress(terms + kTiling.n_block + query), p.delta + start + query, valid);
  }
}

template <typename T, int kDim, typename Tiling>
__global__ __launch_bounds__(
    Tiling::kValue.Threads(),
    Tiling::kValue
        .min_blocks) void AttentionBackwardKeysKernel(const __grid_constant__ AttentionParams p,
                                                      int stage_bytes) {
  constexpr AttentionTiling kTiling = Tiling::kValue;
  using Layout = StreamLayout<T, kDim, kTiling>;
  constexpr int kMTiles = kTiling.m_tiles;
  constexpr int kNTiles = kTiling.n_step / 8;
  constexpr int kPitch = kTilePitch<T, kDim>;
  extern __shared__ __align__(128) char shared[];

  const BlockPlace place(p, p.keys, kTiling.MBlock(), kTiling.row_warps);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / kTiling.m_warps;
  const int warp_key = warp % kTiling.m_warps * kMTiles * 16;
  const int first_key = place.tile + warp_key;
  const bool inside = place.row + warp_row < p.rows;
  const bool active = inside && first_key < p.keys;
  const RowIndex at(p, place.group, inside ? place.row + warp_row : place.row);
  const int count = active ? p.keys - first_key : 0;

  typename Mma<T>::A k[kMTiles][kDim / 16], v[kMTiles][kDim / 16];
  LoadStationary<T>(k, RowBase<const T>(p.k, at, place.head) + first_key * p.k.token, p.k.token,
                    count, p.dim, p.k.aligned);
  LoadStationary<T>(v, RowBase<const T>(p.v, at, place.head) + first_key * p.v.token, p.v.token,
                    count, p.dim, p.v.aligned);
  float mask[kMTiles][2];
  bool any_mask = false;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = m * 16 + half * 8 + LaneId() / 4;
      mask[m][half] = active ? MaskTerm<T>(p, MaskBase(p, at), first_key + key) : 0.0F;
      any_mask |= mask[m][half] != 0.0F;
    }
  }
  const bool masked = __any_sync(0xFFFFFFFFU, any_mask);
  float dk[kMTiles][kDim / 8][4] = {};
  float dv[kMTiles][kDim / 8][4] = {};

  const int tiles = (p.queries + kTiling.n_block - 1) / kTiling.n_block;
  StreamLoader<T, kDim, kTiling> stream(p.q, p.dout, at, place.head, warp_row, inside);
  BiasLoader<T, kTiling.n_block, kTiling.MBlock(), FragmentRows::kKeys, kTiling.Threads()> bias(
      p, place.group, place.head, 0, place.tile, static_cast<int>(threadIdx.x));
  const std::int64_t statistic = StatisticBase(p, at, place.head);
#pragma unroll 1
  for (int tile = -1; tile < tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();
    if (tile + 1 < tiles) {
      char* stage = shared + ((tile + 1) & 1) * stage_bytes;
      const int query = (tile + 1) * kTiling.n_block;
      stream.Next(stage, p.q, p.dout, p.queries - query, p.dim);
      bias.Load(stage + Layout::kBias, p.bias, p.queries - query, p.keys - place.tile,
                static_cast<int>(threadIdx.x));
      bias.Advance(p.bias, kTiling.n_block, 0);
      LoadStatistics<kTiling>(
          reinterpret_cast<float*>(stage + Layout::kTerms) + warp_row * kTiling.n_block * 2, p,
          statistic + query, inside ? p.queries - query : 0);
      CopyAsyncCommit();
    }
    if (tile < 0 || !active) continue;
    const char* stage = shared + (tile & 1) * stage_bytes;
    const T* q = reinterpret_cast<const T*>(stage + Layout::kFirst + warp_row * Layout::kTile);
    const T* dout = reinterpret_cast<const T*>(stage + Layout::kSecond + warp_row * Layout::kTile);
    const float* lse =
        reinterpret_cast<const float*>(stage + Layout::kTerms) + warp_row * kTiling.n_block * 2;
#pragma unroll 1
    for (int step = 0; step < kTiling.n_block; step += kTiling.n_step) {
      float s[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(s, k, q + step * kPitch, p.allow_tf32);
      float dp[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(dp, v, dout + step * kPitch,
                                                             p.allow_tf32);
      ScoreGradientByKey<T, kMTiles, kNTiles, kTiling.MBlock()>(
          s, dp, stage + Layout::kBias, step, warp_key, p.bias.kind, p.scale, mask, masked,
          lse + step, lse + kTiling.n_block + step, p.queries - tile * kTiling.n_block - step);
      if (p.dv.data != nullptr) {
        MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(dv, s, dout + step * kPitch,
                                                              p.allow_tf32);
      }
      if (p.dk.data != nullptr) {
        MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(dk, dp, q + step * kPitch,
                                                              p.allow_tf32);
      }
    }
  }
  if (!active) return;
  float factor[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) factor[m][0] = factor[m][1] = 1.0F;
  if (p.dv.data != nullptr) {
    StoreRows(RowBase<T>(p.dv, at, place.head) + first_key * p.dv.token, p.dv.token, p.dv.aligned,
              count, p.dim, dv, factor);
  }
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) factor[m][0] = factor[m][1] = p.scale;
  if (p.dk.data != nullptr) {
    StoreRows(RowBase<T>(p.dk, at, place.head) + first_key * p.dk.token, p.dk.token, p.dk.aligned,
              count, p.dim, dk, factor);
  }
}

template <typename T, int kDim, AttentionTiling kTiling>
void LaunchBackwardQueries(const AttentionParams& p, cudaStream_t stream) {
  using Layout = StreamLayout<T, kDim, kTiling>;
  const int stage_bytes = Layout::kBias + BiasTileBytes(p, sizeof(T), kTiling.MBlock(),
                                                        kTiling.n_block, FragmentRows::kQueries);
  LaunchKernel("evo_attention backward dQ (cuda sm80)",
               AttentionBackwardQueriesKernel<T, kDim, AttentionTilingOf<kTiling>>,
               BlockCount(p, p.queries, kTiling), kTiling.Threads(), 2 * stage_bytes, stream, p,
               stage_bytes);
}

template <typename T, int kDim, AttentionTiling kTiling>
void LaunchBackwardKeys(const AttentionParams& p, cudaStream_t stream) {
  using Layout = StreamLayout<T, kDim, kTiling>;
  const int stage_bytes = Layout::kBias + BiasTileBytes(p, sizeof(T), kTiling.n_block,
                                                        kTiling.MBlock(), FragmentRows::kKeys);
  LaunchKernel("evo_attention backward dK, dV (cuda sm80)",
               AttentionBackwardKeysKernel<T, kDim, AttentionTilingOf<kTiling>>,
               BlockCount(p, p.keys, kTiling), kTiling.Threads(), 2 * stage_bytes, stream, p,
               stage_bytes);
}

}  // namespace megafold::cuda
