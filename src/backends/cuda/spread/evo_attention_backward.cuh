// Backward of EvoAttention for small grids: one launch whose blocks are of two kinds that do not
// wait for each other.
//   keys     owns keys of one head and one row; the queries pass: dK, dV
//   queries  owns queries of one head; the keys pass, for one row after another where they share a
//            bias whose gradient is wanted: dQ, dBias
// Each recomputes p = exp(x - lse), delta = <dO, O> and ds = p (dp - delta), dp = <dO, V>.
#pragma once

#include <algorithm>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/spread/evo_attention_common.cuh"

namespace megafold::cuda {

template <typename T>
__device__ __forceinline__ float PairDot(std::uint32_t a, std::uint32_t b) {
  const float2 x = ReadPair(reinterpret_cast<const T*>(&a));
  const float2 y = ReadPair(reinterpret_cast<const T*>(&b));
  return fmaf(x.x, y.x, x.y * y.y);
}

// ---- Blocks that own keys. ----

// Shared memory of a round of queries.
template <typename T, int kDim>
struct QueryRound {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  T *q, *dout, *out;
  float *lse, *delta;

  __device__ __forceinline__ QueryRound(char* shared, int step)
      : q(reinterpret_cast<T*>(shared)),
        dout(q + kSpreadParts * step * kPitch),
        out(dout + kSpreadParts * step * kPitch),
        lse(reinterpret_cast<float*>(out + kSpreadParts * step * kPitch)),
        delta(lse + kSpreadParts * step) {}
  static int Bytes(int step) {
    return kSpreadParts * step * (3 * kPitch * static_cast<int>(sizeof(T)) + 8);
  }

  // Loads a round and the bias of the warp's part of it; ends with all of it there, and delta.
  template <int kPairs>
  __device__ __forceinline__ void Load(SpreadScores<kPairs>& x, const SpreadParams& p,
                                       const RowIndex& at, const SpreadPlace& place, int round) {
    const int step = p.query_side.step;
    const int all = kSpreadParts * step;
    const int start = round * all;
    CopySide(q, p.q, p, at, place.head, start, all);
    CopySide(dout, p.dout, p, at, place.head, start, all);
    CopySide(out, p.out, p, at, place.head, start, all);
    CopyAsyncCommit();
    const int query = start + place.part * step;
    LoadBiasByKey<T>(x, p, BiasOffset(p, place, query, place.first), min(step, p.queries - query),
                     place.count);
    const float* from = p.lse + StatisticBase(p, at, place.head) + start;
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
      lse[i] = start + i < p.queries ? from[i] : kInfinity;
    }
    CopyAsyncWait<0>();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
      delta[i] = Dot(dout + i * kPitch, out + i * kPitch);
    }
    __syncthreads();
  }

 private:
  static __device__ __forceinline__ void CopySide(T* tile, const AttentionOperand& operand,
                                                  const SpreadParams& p, const RowIndex& at,
                                                  int head, int start, int rows) {
    CopyVectors<T, kDim>(tile, RowBase<const T>(operand, at, head) + start * operand.token,
                         operand.token, rows, p.queries - start, p.dim);
  }
  static __device__ __forceinline__ float Dot(const T* a, const T* b) {
    float sum = 0.0F;
#pragma unroll
    for (int d = 0; d < kDim; d += 8) {
      const uint4 x = *reinterpret_cast<const uint4*>(a + d);
      const uint4 y = *reinterpret_cast<const uint4*>(b + d);
      sum +=
          PairDot<T>(x.x, y.x) + PairDot<T>(x.y, y.y) + PairDot<T>(x.z, y.z) + PairDot<T>(x.w, y.w);
    }
    return sum;
  }
};

// x becomes p and dp becomes ds for 16 queries, whose statistics begin at `lse` and `delta`. The
// rows are keys.
__device__ __forceinline__ void GradientByKey(float (&x)[1][2][4], float (&dp)[1][2][4],
                                              const float (&mask)[2], const float* lse,
                                              const float* delta) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int column = n * 8 + LaneId() % 4 * 2;
    const float2 lse_pair = *reinterpret_cast<const float2*>(lse + column);
    const float2 delta_pair = *reinterpret_cast<const float2*>(delta + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = SpreadExp(x[0][n][i] + mask[i / 2], i % 2 == 0 ? lse_pair.x : lse_pair.y);
      x[0][n][i] = p;
      dp[0][n][i] = p * (dp[0][n][i] - (i % 2 == 0 ? delta_pair.x : delta_pair.y));
    }
  }
}

// Sums a gradient over the parts and stores it times `factor`.
template <typename T, int kDim>
__device__ __forceinline__ void StoreGradient(char* shared, const SpreadPlace& place, T* to,
                                              std::int64_t stride, int dim,
                                              const float (&c)[1][kDim / 8][4], float factor) {
  PartSums<kDim> sums(shared);
  __syncthreads();  // what lay there has been read
  sums.Put(place, c);
  __syncthreads();
  sums.Store(place, to, stride, dim,
             [&](int) { return make_float4(factor, factor, factor, factor); });
}

template <typename T, int kDim>
__device__ __forceinline__ void SpreadKeys(const SpreadParams& p, char* shared,
                                           std::int64_t block) {
  constexpr int kPairs = SpreadBackwardStep(kDim) / 16;
  constexpr int kPitch = kTilePitch<T, kDim>;
  const SpreadPlace place(p, block, p.keys, p.rows);
  const RowIndex at(p, place.group, place.row);
  const int step = p.query_side.step;
  const int pairs = step / 16;

  typename Mma<T>::A k[1][kDim / 16], v[1][kDim / 16];
  LoadStationary<T>(k, RowBase<const T>(p.k, at, place.head) + place.first * p.k.token, p.k.token,
                    place.count, p.dim, true);
  LoadStationary<T>(v, RowBase<const T>(p.v, at, place.head) + place.first * p.v.token, p.v.token,
                    place.count, p.dim, true);
  float mask[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    mask[half] = MaskTerm<T>(p, MaskBase(p, at), place.first + half * 8 + LaneId() / 4);
  }
  float dk[1][kDim / 8][4] = {};
  float dv[1][kDim / 8][4] = {};
  QueryRound<T, kDim> queries(shared, step);
#pragma unroll 1
  for (int round = 0; round < p.query_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    SpreadScores<kPairs> x;
    queries.Load(x, p, at, place, round);
    if (place.count == 0) continue;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (i >= pairs) break;
      const int query = place.part * step + i * 16;
      AddScores<T, kDim>(x[i], k, queries.q + query * kPitch, p.scale);
      float dp[1][2][4] = {};
      MultiplyByRows<T, 1, kDim / 16, 2, kPitch>(dp, v, queries.dout + query * kPitch);
      GradientByKey(x[i], dp, mask, queries.lse + query, queries.delta + query);
      if (p.dv.data != nullptr) {
        MultiplyScores<T, 1, 2, kDim / 8, kPitch>(dv, x[i], queries.dout + query * kPitch);
      }
      if (p.dk.data != nullptr) {
        MultiplyScores<T, 1, 2, kDim / 8, kPitch>(dk, dp, queries.q + query * kPitch);
      }
    }
  }
  if (p.dv.data != nullptr) {
    StoreGradient<T, kDim>(shared, place,
                           RowBase<T>(p.dv, at, place.head) + place.first * p.dv.token, p.dv.token,
                           p.dim, dv, 1.0F);
  }
  if (p.dk.data != nullptr) {
    StoreGradient<T, kDim>(shared, place,
                           RowBase<T>(p.dk, at, place.head) + place.first * p.dk.token, p.dk.token,
                           p.dim, dk, p.scale);
  }
}

// ---- Blocks that own queries. ----

// Q, dO and statistics of a warp's queries.
template <typename T, int kDim>
struct SpreadQueries {
  typename Mma<T>::A q[1][kDim / 16], dout[1][kDim / 16];
  float lse[2], delta[2] = {};

  __device__ __forceinline__ SpreadQueries(const SpreadParams& p, const RowIndex& at,
                                           const SpreadPlace& place) {
    const auto load = [&](auto& to, const AttentionOperand& operand) {
      LoadStationary<T>(to, RowBase<const T>(operand, at, place.head) + place.first * operand.token,
                        operand.token, place.count, p.dim, true);
    };
    typename Mma<T>::A out[1][kDim / 16];
    load(q, p.q);
    load(dout, p.dout);
    load(out, p.out);
    const float* from = p.lse + StatisticBase(p, at, place.head) + place.first;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = half * 8 + LaneId() / 4;
      lse[half] = query < place.count ? from[query] : kInfinity;
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        delta[half] += PairDot<T>(dout[0][k].r[half], out[0][k].r[half]) +
                       PairDot<T>(dout[0][k].r[half + 2], out[0][k].r[half + 2]);
      }
      delta[half] += __shfl_xor_sync(0xFFFFFFFFU, delta[half], 1);
      delta[half] += __shfl_xor_sync(0xFFFFFFFFU, delta[half], 2);
    }
  }
};

// Adds ds of 16 keys to dBias, or stores the first row's. `to` is the lane's first element: a
// thread meets the same ones in every row.
__device__ __forceinline__ void StoreBiasGradient(float* to, const float (&ds)[1][2][4],
                                                  int queries, int keys, std::int64_t query_stride,
                                                  bool pairs, bool first) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half * 8 + LaneId() / 4 >= queries) continue;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int left = keys - n * 8 - LaneId() % 4 * 2;
      float* const at = to + half * 8 * query_stride + n * 8;
      float2 sum = make_float2(ds[0][n][half * 2], ds[0][n][half * 2 + 1]);
      if (!first) {
        if (left > 0) sum.x += at[0];
        if (left > 1) sum.y += at[1];
      }
      if (pairs) {
        if (left > 0) *reinterpret_cast<float2*>(at) = sum;
      } else {
        if (left > 0) at[0] = sum.x;
        if (left > 1) at[1] = sum.y;
      }
    }
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void SpreadQueriesRow(const SpreadParams& p, char* shared,
                                                 const SpreadPlace& place, std::int64_t row) {
  constexpr int kPairs = SpreadBackwardStep(kDim) / 16;
  constexpr int kPitch = kTilePitch<T, kDim>;
  const RowIndex at(p, place.group, row);
  const int step = p.key_side.step;
  const int pairs = step / 16;
  const SpreadQueries<T, kDim> mine(p, at, place);
  float dq[1][kDim / 8][4] = {};
  KeyRound<T, kDim> keys(shared, step);
#pragma unroll 1
  for (int round = 0; round < p.key_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    SpreadScores<kPairs> x;
    keys.Load(x, p, at, place, round);
    if (place.count == 0) continue;
    const int first_key = (round * kSpreadParts + place.part) * step;
    const std::int64_t query =
        (place.group * p.heads + place.head) * p.queries + place.first + LaneId() / 4;
    float* const dbias = p.dbias + query * p.keys + first_key + LaneId() % 4 * 2;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      if (k >= pairs) break;
      const int key = place.part * step + k * 16;
      AddScores<T, kDim>(x[k], mine.q, keys.k + key * kPitch, p.scale);
      AddColumnTerm(x[k], keys.terms + key);
      float dp[1][2][4] = {};
      MultiplyByRows<T, 1, kDim / 16, 2, kPitch>(dp, mine.dout, keys.v + key * kPitch);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          dp[0][n][i] =
              SpreadExp(x[k][0][n][i], mine.lse[i / 2]) * (dp[0][n][i] - mine.delta[i / 2]);
        }
      }
      if (p.dbias != nullptr) {
        StoreBiasGradient(dbias + k * 16, dp, place.count, p.keys - first_key - k * 16, p.keys,
                          p.dbias_pairs, row == 0);
      }
      if (p.dq.data != nullptr) {
        MultiplyScores<T, 1, 2, kDim / 8, kPitch>(dq, dp, keys.k + key * kPitch);
      }
    }
  }
  if (p.dq.data != nullptr) {
    StoreGradient<T, kDim>(shared, place,
                           RowBase<T>(p.dq, at, place.head) + place.first * p.dq.token, p.dq.token,
                           p.dim, dq, p.scale);
  }
}

template <typename T, int kDim>
__global__ __launch_bounds__(kSpreadThreads) void SpreadBackwardKernel(
    const __grid_constant__ SpreadParams p) {
  extern __shared__ __align__(128) char shared[];
  if (blockIdx.x < p.key_blocks) {
    SpreadKeys<T, kDim>(p, shared, blockIdx.x);
    return;
  }
  const std::int64_t block = blockIdx.x - p.key_blocks;
  const bool walks = p.dbias != nullptr;
  const SpreadPlace place(p, block, p.queries, walks ? 1 : p.rows);
  const std::int64_t rows = walks ? p.rows : 1;
#pragma unroll 1
  for (std::int64_t row = 0; row < rows; ++row) {
    if (row > 0) __syncthreads();
    SpreadQueriesRow<T, kDim>(p, shared, place, place.row + row);
  }
}

template <typename T, int kDim>
void LaunchSpreadBackward(const SpreadParams& p, cudaStream_t stream) {
  const int bytes =
      std::max({KeyRound<T, kDim>::Bytes(p.key_side.step),
                QueryRound<T, kDim>::Bytes(p.query_side.step), PartSums<kDim>::Bytes(p.tiles)});
  LaunchKernel("evo_attention backward (cuda sm80 spread)", SpreadBackwardKernel<T, kDim>,
               p.key_blocks + p.query_blocks, p.tiles * kSpreadParts * 32,
               static_cast<std::size_t>(bytes), stream, p);
}

}  // namespace megafold::cuda
