// Forward of EvoAttention with mma.sync: a block owns a tile of queries of one head for a few rows
// that share the bias, and walks over the keys with an online softmax.
//
// The running maximum is only raised when a score passes it by kSlack, so that most tiles need
// neither a shuffle nor a rescale; p stays below 2^(kSlack log2(e)), which every storage type
// holds.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/sm80/evo_attention_stream.cuh"

namespace megafold::cuda {

inline constexpr float kSlack = 5.5F;

template <int kMTiles>
struct SoftmaxState {
  float maximum[kMTiles][2], sum[kMTiles][2];
};

// Scores far below this are no keys: -inf, or a bias of such numbers.
inline constexpr float kLowestShift = 4 * kLowestTerm;

// Turns scores into p and updates maximum, sum and the accumulators that depend on them.
template <typename T, int kMTiles, int kNTiles, int kOTiles>
__device__ __forceinline__ void OnlineSoftmax(float (&s)[kMTiles][kNTiles][4],
                                              SoftmaxState<kMTiles>& state,
                                              float (&out)[kMTiles][kOTiles][4]) {
  float maximum[kMTiles][2];
  bool raise = false;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = fmaxf(s[m][0][half * 2], s[m][0][half * 2 + 1]);
#pragma unroll
      for (int n = 1; n < kNTiles; ++n) {
        best = fmaxf(best, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
      }
      maximum[m][half] = best;
      raise |= best > state.maximum[m][half] + kSlack;
    }
  }
  if (__any_sync(0xFFFFFFFFU, raise)) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float best = maximum[m][half];
        best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 2));
        const float old = state.maximum[m][half];
        best = fmaxf(best, old);
        const float factor = old == -kInfinity ? 0.0F : Exp2((old - best) * kLog2E);
        state.maximum[m][half] = best;
        state.sum[m][half] *= factor;
#pragma unroll
        for (int n = 0; n < kOTiles; ++n) {
          out[m][n][half * 2] *= factor;
          out[m][n][half * 2 + 1] *= factor;
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = fmaxf(state.maximum[m][half], kLowestShift);
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          s[m][n][i] = ExpDifference<T>(s[m][n][i], shift);
          state.sum[m][half] += s[m][n][i];
        }
      }
    }
  }
}

template <typename T, int kDim, typename Tiling>
__global__
__launch_bounds__(Tiling::kValue.Threads(), Tiling::kValue.min_blocks) void AttentionForwardKernel(
    const __grid_constant__ AttentionParams p, int stage_bytes) {
  constexpr AttentionTiling kTiling = Tiling::kValue;
  using Layout = StreamLayout<T, kDim, kTiling>;
  constexpr int kMTiles = kTiling.m_tiles;
  constexpr int kNTiles = kTiling.n_step / 8;
  constexpr int kPitch = kTilePitch<T, kDim>;
  extern __shared__ __align__(128) char shared[];

  const BlockPlace place(p, p.queries, kTiling.MBlock(), kTiling.row_warps);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / kTiling.m_warps;
  const int warp_query = warp % kTiling.m_warps * kMTiles * 16;  // in the block's tile
  const int first_query = place.tile + warp_query;
  const bool inside = place.row + warp_row < p.rows;
  const bool active = inside && first_query < p.queries;
  const RowIndex at(p, place.group, inside ? place.row + warp_row : place.row);

  typename Mma<T>::A q[kMTiles][kDim / 16];
  LoadStationary<T>(q, RowBase<const T>(p.q, at, place.head) + first_query * p.q.token, p.q.token,
                    active ? p.queries - first_query : 0, p.dim, p.q.aligned);
  float out[kMTiles][kDim / 8][4] = {};
  SoftmaxState<kMTiles> state;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.maximum[m][half] = -kInfinity;
      state.sum[m][half] = 0.0F;
    }
  }

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
      ApplyBias<T, kMTiles, kNTiles, kTiling.n_block>(s, stage + Layout::kBias, warp_query, step,
                                                      p.bias.kind, p.scale);
      if (masked) AddColumnTerm(s, terms + step);
      OnlineSoftmax<T>(s, state, out);
      MultiplyScores<T, kMTiles, kNTiles, kDim / 8, kPitch>(out, s, v + step * kPitch,
                                                            p.allow_tf32);
    }
  }
  if (!active) return;

  float factor[kMTiles][2];
  float* lse = p.lse + StatisticBase(p, at, place.head) + first_query;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[m][half];
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
      factor[m][half] = sum > 0.0F ? 1.0F / sum : 0.0F;
      const int query = m * 16 + half * 8 + LaneId() / 4;
      if (LaneId() % 4 == 0 && first_query + query < p.queries) {
        lse[query] = sum > 0.0F ? state.maximum[m][half] + logf(sum) : kInfinity;
      }
    }
  }
  StoreRows(RowBase<T>(p.out, at, place.head) + first_query * p.out.token, p.out.token,
            p.out.aligned, p.queries - first_query, p.dim, out, factor);
}

template <typename T, int kDim, AttentionTiling kTiling>
void LaunchForward(const AttentionParams& p, cudaStream_t stream) {
  using Layout = StreamLayout<T, kDim, kTiling>;
  const int stage_bytes = Layout::kBias + BiasTileBytes(p, sizeof(T), kTiling.MBlock(),
                                                        kTiling.n_block, FragmentRows::kQueries);
  LaunchKernel("evo_attention forward (cuda sm80)",
               AttentionForwardKernel<T, kDim, AttentionTilingOf<kTiling>>,
               BlockCount(p, p.queries, kTiling), kTiling.Threads(), 2 * stage_bytes, stream, p,
               stage_bytes);
}

}  // namespace megafold::cuda
