// Backward of EvoAttention for small grids: one launch whose blocks are of two kinds that do not
// wait for each other.
//   keys     owns keys of one head and one row; the queries pass: dK, dV
//   queries  owns queries of one head; the keys pass, for the rows of a chunk one after another
//            where they share a bias whose gradient is wanted: dQ, dBias or its part
// Each recomputes p = exp(x - lse), delta = <dO, O> (unless it is given) and ds = p (dp - delta),
// dp = <dO, V>.
#pragma once

#include <algorithm>

#include "backends/cuda/spread/evo_attention_common.cuh"

namespace megafold::cuda {

template <typename T>
__device__ __forceinline__ float PairDot(std::uint32_t a, std::uint32_t b) {
  const float2 x = ReadPair(reinterpret_cast<const T*>(&a));
  const float2 y = ReadPair(reinterpret_cast<const T*>(&b));
  return fmaf(x.x, y.x, x.y * y.y);
}

// ---- Blocks that own keys. ----

// A round of queries, for blocks that keep keys.
template <typename T, int kDim>
struct QueryRound {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  T *q, *dout, *out;
  float *lse, *delta;
  char* bias;  // of the warp's tile

  __device__ __forceinline__ QueryRound(char* shared, const SpreadParams& p, int tile) {
    const int all = kSpreadParts * p.query_side.step;
    q = reinterpret_cast<T*>(shared);
    dout = q + all * kPitch;
    out = dout + all * kPitch;
    lse = reinterpret_cast<float*>(out + all * kPitch);
    delta = lse + all;
    bias = reinterpret_cast<char*>(delta + all) + tile * all * BiasRowBytes(p.bias);
  }
  static int Bytes(const SpreadParams& p) {
    return kSpreadParts * p.query_side.step *
           (3 * kPitch * static_cast<int>(sizeof(T)) + 8 + p.tiles * BiasRowBytes(p.bias));
  }

  // Loads a round; ends with all of it there, and delta.
  __device__ __forceinline__ void Load(const SpreadParams& p, const SpreadRow& row,
                                       const SpreadPlace& place, int round) {
    const RowIndex at = row.At();
    const int all = kSpreadParts * p.query_side.step;
    const int start = round * all;
    const int bytes = BiasElementBytes(p.bias);
    if (bytes != 0) {
      CopyBias(bias, BiasPitchByKey(bytes), p,
               BiasOffset(p.bias, row.group, place.head, start, place.first), all, 16,
               p.queries - start, place.count, bytes, place.thread);
    }
    CopySide(q, p.q, p, at, place.head, start, all);
    CopySide(dout, p.dout, p, at, place.head, start, all);
    if (p.delta == nullptr) CopySide(out, p.out, p, at, place.head, start, all);
    CopyAsyncCommit();
    const std::int64_t statistic = StatisticBase(p, at, place.head) + start;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
      const bool inside = start + i < p.queries;
      lse[i] = inside ? p.lse[statistic + i] : kInfinity;
      if (p.delta != nullptr) delta[i] = inside ? p.delta[statistic + i] : 0.0F;
    }
    CopyAsyncWait<0>();
    __syncthreads();
    if (p.delta != nullptr) return;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
      delta[i] = Dot(dout + i * kPitch, out + i * kPitch);
    }
    __syncthreads();
  }

  // x = scale s + bias for the round's 16 queries from `query` on.
  __device__ __forceinline__ void AddBias(SpreadScores& s, const SpreadParams& p, int query) const {
    AddBiasByKey<T>(s, p, bias + query * BiasRowBytes(p.bias));
  }

 private:
  __host__ __device__ static int BiasRowBytes(const AttentionBias& bias) {
    const int bytes = BiasElementBytes(bias);
    return bytes == 0 ? 0 : BiasPitchByKey(bytes) * bytes;
  }
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
__device__ __forceinline__ void GradientByKey(SpreadScores& x, SpreadScores& dp,
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
  PartFactors factors;
#pragma unroll
  for (int part = 0; part < kSpreadParts; ++part) factors.part[part] = factor;
  __syncthreads();
  sums.Store(place, to, stride, dim, [&](int, bool) { return factors; });
}

template <typename T, int kDim>
__device__ __forceinline__ void SpreadKeys(const SpreadParams& p, char* shared, int block) {
  constexpr int kPitch = kTilePitch<T, kDim>;
  const SpreadPlace place(p, block, p.keys);
  const SpreadRow row(p, blockIdx.z);
  const RowIndex at = row.At();

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
  QueryRound<T, kDim> queries(shared, p, place.tile);
#pragma unroll 1
  for (int round = 0; round < p.query_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    queries.Load(p, row, place, round);
    if (place.count == 0) continue;
    const int begin = place.part * p.query_side.step;
#pragma unroll 1
    for (int query = begin; query < begin + p.query_side.step; query += 16) {
      SpreadScores s = {};
      MultiplyByRows<T, 1, kDim / 16, 2, kPitch>(s, k, queries.q + query * kPitch);
      queries.AddBias(s, p, query);
      SpreadScores dp = {};
      MultiplyByRows<T, 1, kDim / 16, 2, kPitch>(dp, v, queries.dout + query * kPitch);
      GradientByKey(s, dp, mask, queries.lse + query, queries.delta + query);
      if (p.dv.data != nullptr) {
        MultiplyScores<T, 1, 2, kDim / 8, kPitch>(dv, s, queries.dout + query * kPitch);
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

// Q, dO and statistics of a warp's queries; delta only where it is wanted.
template <typename T, int kDim, bool kDelta = true>
struct SpreadQueries {
  typename Mma<T>::A q[1][kDim / 16], dout[1][kDim / 16];
  float lse[2], delta[2] = {};

  __device__ __forceinline__ SpreadQueries(const SpreadParams& p, const RowIndex& at,
                                           const SpreadPlace& place) {
    const auto load = [&](auto& to, const AttentionOperand& operand) {
      LoadStationary<T>(to, RowBase<const T>(operand, at, place.head) + place.first * operand.token,
                        operand.token, place.count, p.dim, true);
    };
    load(q, p.q);
    load(dout, p.dout);
    const std::int64_t statistic = StatisticBase(p, at, place.head) + place.first;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = half * 8 + LaneId() / 4;
      const bool inside = query < place.count;
      lse[half] = inside ? p.lse[statistic + query] : kInfinity;
      if (kDelta && p.delta != nullptr && inside) delta[half] = p.delta[statistic + query];
    }
    if (!kDelta || p.delta != nullptr) return;
    typename Mma<T>::A out[1][kDim / 16];
    load(out, p.out);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
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
__device__ __forceinline__ void StoreSpreadBiasGradient(float* to, const SpreadScores& ds,
                                                        int queries, int keys,
                                                        std::int64_t query_stride, bool pairs,
                                                        bool first) {
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
                                                 const SpreadPlace& place, const SpreadRow& row,
                                                 bool first) {
  constexpr int kPitch = kTilePitch<T, kDim>;
  const RowIndex at = row.At();
  const int step = p.key_side.step;
  const SpreadQueries<T, kDim> mine(p, at, place);
  float dq[1][kDim / 8][4] = {};
  KeyRound<T, kDim> keys(shared, p, place.tile);
#pragma unroll 1
  for (int round = 0; round < p.key_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    keys.Load(p, row, place, round);
    if (place.count == 0) continue;
    const int start = round * kSpreadParts * step;  // key 0 of the round
    const std::int64_t query =
        static_cast<std::int64_t>(blockIdx.z * p.heads + place.head) * p.queries + place.first +
        LaneId() / 4;
    float* const dbias = p.dbias + query * p.keys + start + LaneId() % 4 * 2;
#pragma unroll 1
    for (int key = place.part * step; key < (place.part + 1) * step; key += 16) {
      SpreadScores s = {};
      keys.Scores(s, p, mine.q, key);
      SpreadScores ds = {};
      MultiplyByRows<T, 1, kDim / 16, 2, kPitch>(ds, mine.dout, keys.v + key * kPitch);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          ds[0][n][i] = SpreadExp(s[0][n][i], mine.lse[i / 2]) * (ds[0][n][i] - mine.delta[i / 2]);
        }
      }
      if (p.dbias != nullptr) {
        StoreSpreadBiasGradient(dbias + key, ds, place.count, p.keys - start - key, p.keys,
                                p.dbias_pairs, first);
      }
      if (p.dq.data != nullptr) {
        MultiplyScores<T, 1, 2, kDim / 8, kPitch>(dq, ds, keys.k + key * kPitch);
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
__global__ __launch_bounds__(SpreadMaxTiles(kDim) * kTileThreads) void SpreadBackwardKernel(
    const __grid_constant__ SpreadParams p) {
  extern __shared__ __align__(128) char shared[];
  const int block = static_cast<int>(blockIdx.x) - p.key_blocks;
  if (block < 0) {
    SpreadKeys<T, kDim>(p, shared, static_cast<int>(blockIdx.x));
    return;
  }
  const SpreadPlace place(p, block, p.queries);
  // A part of a bias's gradient has one owner for all the rows of a chunk.
  unsigned first = blockIdx.z, last = first + 1;
  if (p.dbias != nullptr) {
    const auto groups = static_cast<unsigned>(p.groups), rows = static_cast<unsigned>(p.rows);
    if (blockIdx.z >= groups * p.chunks) return;
    const unsigned chunk = groups == 1 ? blockIdx.z : blockIdx.z / groups;
    const unsigned begin = (blockIdx.z - chunk * groups) * rows;  // of the group
    first = begin + chunk * p.chunk_rows;
    last = begin + min((chunk + 1) * p.chunk_rows, rows);
  }
#pragma unroll 1
  for (unsigned row = first; row < last; ++row) {
    if (row > first) __syncthreads();
    SpreadQueriesRow<T, kDim>(p, shared, place, SpreadRow(p, row), row == first);
  }
}

template <typename T, int kDim>
int SpreadBackwardBytes(const SpreadParams& p) {
  return std::max({p.query_blocks > 0 ? KeyRound<T, kDim>::Bytes(p) : 0,
                   p.key_blocks > 0 ? QueryRound<T, kDim>::Bytes(p) : 0,
                   PartSums<kDim>::Bytes(p.tiles)});
}

template <typename T, int kDim>
void LaunchSpreadBackward(const SpreadParams& p, cudaStream_t stream) {
  Launch("evo_attention backward (cuda sm80 spread)", SpreadBackwardKernel<T, kDim>,
         SpreadShape(p, p.key_blocks + p.query_blocks, SpreadBackwardBytes<T, kDim>(p)), stream, p);
}

}  // namespace megafold::cuda
