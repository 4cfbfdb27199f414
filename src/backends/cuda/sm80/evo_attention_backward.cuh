// Backward of EvoAttention with mma.sync, in kernels that each own what they write, so that nothing is
// added atomically and a result is the same bit for bit in every run:
//   keys     a block owns keys of one head and a few rows and walks over the queries: dK, dV
//   queries  a block owns queries and walks over the keys: dQ
//   bias     a block owns a (queries, keys) tile of one head and walks over the rows: dBias, in parts
// Each recomputes p = exp(x - lse) and ds = p (dp - delta), dp = <dO, V>.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/sm80/evo_attention_stream.cuh"

namespace megafold::cuda {

// p and ds for fragments whose rows are queries: s becomes p, dp becomes ds. `shift` is -lse log2(e).
template <int kMTiles, int kNTiles>
__device__ __forceinline__ void ScoreGradientByQuery(float (&s)[kMTiles][kNTiles][4],
                                                     float (&dp)[kMTiles][kNTiles][4],
                                                     const float (&shift)[kMTiles][2],
                                                     const float (&delta)[kMTiles][2]) {
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = Exp2(fmaf(s[m][n][i], kLog2E, shift[m][i / 2]));
        dp[m][n][i] = s[m][n][i] * (dp[m][n][i] - delta[m][i / 2]);
      }
    }
  }
}

template <typename T, int kDim, AttentionShape kShape>
__global__ __launch_bounds__(BackwardTiling(kShape, sizeof(T), kDim).Threads(),
                             BackwardTiling(kShape, sizeof(T), kDim).min_blocks)
    void AttentionBackwardQueriesKernel(const __grid_constant__ AttentionParams p, int stage_bytes) {
  constexpr AttentionTiling kTiling = BackwardTiling(kShape, sizeof(T), kDim);
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
  const bool active = place.row + warp_row < p.rows && first_query < p.queries;
  const RowIndex at(p, place.group, active ? place.row + warp_row : place.row);
  const int count = active ? p.queries - first_query : 0;

  typename Mma<T>::A q[kMTiles][kDim / 16], dout[kMTiles][kDim / 16];
  LoadStationary<T>(q, RowBase<const T>(p.q, at, place.head) + first_query * p.q.token, p.q.token,
                    count, p.dim, p.q.aligned);
  LoadStationary<T>(dout, RowBase<const T>(p.dout, at, place.head) + first_query * p.dout.token,
                    p.dout.token, count, p.dim, p.dout.aligned);
  float shift[kMTiles][2], delta[kMTiles][2];
  const std::int64_t statistic = StatisticBase(p, at, place.head) + first_query;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = m * 16 + half * 8 + LaneId() / 4;
      shift[m][half] = query < count ? -p.lse[statistic + query] * kLog2E : -kInfinity;
      delta[m][half] = query < count ? p.delta[statistic + query] : 0.0F;
    }
  }
  float dq[kMTiles][kDim / 8][4] = {};

  const int tiles = (p.keys + kTiling.n_block - 1) / kTiling.n_block;
  MaskPrefetch<T, kTiling> mask;
  auto fetch = [&](int tile) {
    char* stage = shared + (tile & 1) * stage_bytes;
    const int key = tile * kTiling.n_block;
    LoadStream<T, kDim, kTiling>(stage, p, p.k, p.v, place, key, p.keys);
    LoadBias<T, kTiling.MBlock(), kTiling.n_block, Layout::kBiasPitchByQuery, kTiling.Threads()>(
        stage + Layout::kBias, p, place.group, place.head, place.tile, key);
    mask.Store(reinterpret_cast<float*>(stage + Layout::kTerms));
    CopyAsyncCommit();
    if (tile + 1 < tiles) mask.Load(p, place, key + kTiling.n_block);
  };
  if (tiles > 0) {
    mask.Load(p, place, 0);
    fetch(0);
  }
  for (int tile = 0; tile < tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();
    if (tile + 1 < tiles) fetch(tile + 1);
    if (!active) continue;
    const char* stage = shared + (tile & 1) * stage_bytes;
    const T* k = reinterpret_cast<const T*>(stage + Layout::kFirst + warp_row * Layout::kTile);
    const T* v = reinterpret_cast<const T*>(stage + Layout::kSecond + warp_row * Layout::kTile);
    const float* terms =
        reinterpret_cast<const float*>(stage + Layout::kTerms) + warp_row * kTiling.n_block;
    const bool masked = AnyTerm<kTiling.n_block>(terms);
#pragma unroll 1
    for (int step = 0; step < kTiling.n_block; step += kTiling.n_step) {
      float s[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(s, q, k + step * kPitch);
      float dp[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(dp, dout, v + step * kPitch);
      ApplyBias<T, kMTiles, kNTiles, Layout::kBiasPitchByQuery>(
          s, stage + Layout::kBias, warp_query * Layout::kBiasPitchByQuery + step, p.bias.kind,
          p.scale);
      if (masked) AddColumnTerm(s, terms + step);
      ScoreGradientByQuery(s, dp, shift, delta);
      MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(dq, dp, k + step * kPitch);
    }
  }
  if (!active) return;
  float factor[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) factor[m][0] = factor[m][1] = p.scale;
  StoreRows(RowBase<T>(p.dq, at, place.head) + first_query * p.dq.token, p.dq.token, p.dq.aligned,
            count, p.dim, dq, factor);
}

// x = scale * s + bias + mask, p and ds for fragments whose rows are keys and whose columns are queries.
// `bias` points into a tile whose rows are queries; lse and delta at column 0.
template <typename T, int kMTiles, int kNTiles, int kPitch>
__device__ __forceinline__ void ScoreGradientByKey(float (&s)[kMTiles][kNTiles][4],
                                                   float (&dp)[kMTiles][kNTiles][4], const void* tile,
                                                   int offset, TermKind kind, float scale,
                                                   const float (&mask)[kMTiles][2], bool masked,
                                                   const float* lse, const float* delta, int queries) {
  const int lane = LaneId();
  const int at = offset + (lane % 4) * 2 * kPitch + lane / 4;
  auto add_bias = [&]<typename Element>(const Element* source) {
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
    add_bias(static_cast<const float*>(tile) + at);
  } else if (kind == TermKind::kStorage) {
    add_bias(static_cast<const T*>(tile) + at);
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
    const float shift[2] = {column < queries ? -lse_pair.x * kLog2E : -kInfinity,
                            column + 1 < queries ? -lse_pair.y * kLog2E : -kInfinity};
    const float deltas[2] = {delta_pair.x, delta_pair.y};
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = Exp2(fmaf(s[m][n][i], kLog2E, shift[i % 2]));
        dp[m][n][i] = s[m][n][i] * (dp[m][n][i] - deltas[i % 2]);
      }
    }
  }
}

// lse and delta of a tile of queries, of every row of the block: [row][lse, delta][n_block] floats.
template <AttentionTiling kTiling>
__device__ __forceinline__ void LoadStatistics(float* terms, const AttentionParams& p,
                                               const BlockPlace& place, int start) {
  for (int index = static_cast<int>(threadIdx.x); index < kTiling.row_warps * kTiling.n_block * 2;
       index += kTiling.Threads()) {
    const int column = index % kTiling.n_block;
    const int which = index / kTiling.n_block % 2;
    const std::int64_t row = place.row + index / (2 * kTiling.n_block);
    const bool inside = row < p.rows && start + column < p.queries;
    const float* from = which == 0 ? p.lse : p.delta;
    if (inside) from += StatisticBase(p, RowIndex(p, place.group, row), place.head) + start + column;
    CopyAsync4(SharedAddress(terms + index), from, inside ? 4 : 0);
  }
}

template <typename T, int kDim, AttentionShape kShape>
__global__ __launch_bounds__(BackwardTiling(kShape, sizeof(T), kDim).Threads(),
                             BackwardTiling(kShape, sizeof(T), kDim).min_blocks)
    void AttentionBackwardKeysKernel(const __grid_constant__ AttentionParams p, int stage_bytes) {
  constexpr AttentionTiling kTiling = BackwardTiling(kShape, sizeof(T), kDim);
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
  const bool active = place.row + warp_row < p.rows && first_key < p.keys;
  const RowIndex at(p, place.group, active ? place.row + warp_row : place.row);
  const int count = active ? p.keys - first_key : 0;

  typename Mma<T>::A k[kMTiles][kDim / 16], v[kMTiles][kDim / 16];
  LoadStationary<T>(k, RowBase<const T>(p.k, at, place.head) + first_key * p.k.token, p.k.token, count,
                    p.dim, p.k.aligned);
  LoadStationary<T>(v, RowBase<const T>(p.v, at, place.head) + first_key * p.v.token, p.v.token, count,
                    p.dim, p.v.aligned);
  float mask[kMTiles][2];
  bool any_mask = false;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = m * 16 + half * 8 + LaneId() / 4;
      mask[m][half] = active ? MaskTerm<T>(p, at, first_key + key) : 0.0F;
      any_mask |= mask[m][half] != 0.0F;
    }
  }
  const bool masked = __any_sync(0xFFFFFFFFU, any_mask);
  float dk[kMTiles][kDim / 8][4] = {};
  float dv[kMTiles][kDim / 8][4] = {};

  const int tiles = (p.queries + kTiling.n_block - 1) / kTiling.n_block;
  auto fetch = [&](int tile) {
    char* stage = shared + (tile & 1) * stage_bytes;
    const int query = tile * kTiling.n_block;
    LoadStream<T, kDim, kTiling>(stage, p, p.q, p.dout, place, query, p.queries);
    LoadBias<T, kTiling.n_block, kTiling.MBlock(), Layout::kBiasPitchByKey, kTiling.Threads()>(
        stage + Layout::kBias, p, place.group, place.head, query, place.tile);
    LoadStatistics<kTiling>(reinterpret_cast<float*>(stage + Layout::kTerms), p, place, query);
    CopyAsyncCommit();
  };
  if (tiles > 0) fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    CopyAsyncWait<0>();
    __syncthreads();
    if (tile + 1 < tiles) fetch(tile + 1);
    if (!active) continue;
    const char* stage = shared + (tile & 1) * stage_bytes;
    const T* q = reinterpret_cast<const T*>(stage + Layout::kFirst + warp_row * Layout::kTile);
    const T* dout = reinterpret_cast<const T*>(stage + Layout::kSecond + warp_row * Layout::kTile);
    const float* lse =
        reinterpret_cast<const float*>(stage + Layout::kTerms) + warp_row * kTiling.n_block * 2;
#pragma unroll 1
    for (int step = 0; step < kTiling.n_block; step += kTiling.n_step) {
      float s[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(s, k, q + step * kPitch);
      float dp[kMTiles][kNTiles][4] = {};
      MultiplyByRows<T, kMTiles, kDim / 16, kNTiles, kPitch>(dp, v, dout + step * kPitch);
      ScoreGradientByKey<T, kMTiles, kNTiles, Layout::kBiasPitchByKey>(
          s, dp, stage + Layout::kBias, step * Layout::kBiasPitchByKey + warp_key, p.bias.kind, p.scale,
          mask, masked, lse + step, lse + kTiling.n_block + step,
          p.queries - tile * kTiling.n_block - step);
      if (p.dv.data != nullptr) {
        MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(dv, s, dout + step * kPitch);
      }
      if (p.dk.data != nullptr) {
        MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(dk, dp, q + step * kPitch);
      }
    }
  }
  if (!active) return;
  float factor[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) factor[m][0] = factor[m][1] = 1.0F;
  if (p.dv.data != nullptr) {
    StoreRows(RowBase<T>(p.dv, at, place.head) + first_key * p.dv.token, p.dv.token, p.dv.aligned, count,
              p.dim, dv, factor);
  }
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) factor[m][0] = factor[m][1] = p.scale;
  if (p.dk.data != nullptr) {
    StoreRows(RowBase<T>(p.dk, at, place.head) + first_key * p.dk.token, p.dk.token, p.dk.aligned, count,
              p.dim, dk, factor);
  }
}

template <typename T, int kDim, AttentionShape kShape>
void LaunchBackwardQueries(const AttentionParams& p, cudaStream_t stream) {
  constexpr AttentionTiling kTiling = BackwardTiling(kShape, sizeof(T), kDim);
  using Layout = StreamLayout<T, kDim, kTiling>;
  const int stage_bytes =
      Layout::kBias + kTiling.MBlock() * Layout::kBiasPitchByQuery * BiasBytes(p, sizeof(T));
  LaunchKernel("evo_attention backward dQ (cuda sm80)", AttentionBackwardQueriesKernel<T, kDim, kShape>,
               BlockCount(p, p.queries, kTiling), kTiling.Threads(), 2 * stage_bytes, stream, p,
               stage_bytes);
}

template <typename T, int kDim, AttentionShape kShape>
void LaunchBackwardKeys(const AttentionParams& p, cudaStream_t stream) {
  constexpr AttentionTiling kTiling = BackwardTiling(kShape, sizeof(T), kDim);
  using Layout = StreamLayout<T, kDim, kTiling>;
  const int stage_bytes =
      Layout::kBias + kTiling.n_block * Layout::kBiasPitchByKey * BiasBytes(p, sizeof(T));
  LaunchKernel("evo_attention backward dK, dV (cuda sm80)",
               AttentionBackwardKeysKernel<T, kDim, kShape>, BlockCount(p, p.keys, kTiling),
               kTiling.Threads(), 2 * stage_bytes, stream, p, stage_bytes);
}

}  // namespace megafold::cuda
