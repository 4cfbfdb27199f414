// What a warp of the backward in strips does with 16 queries: scores, dBias, the block's part of
// dQ, its own of dK and dV.
#pragma once

#include "backends/cuda/strips/evo_attention_backward_copies.cuh"

namespace megafold::cuda {

// The bias of four keys of a query.
template <typename T>
__device__ __forceinline__ float4 ReadStripBias(const StripProblem& p, const char* bias, int at) {
  if (p.bias_kind == TermKind::kFloat32) return *reinterpret_cast<const float4*>(bias + at * 4);
  if (p.bias_kind == TermKind::kNone) return make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  const auto* const from = reinterpret_cast<const T*>(bias) + at;
  const float2 low = ReadPair(from), high = ReadPair(from + 2);
  return make_float4(low.x, low.y, high.x, high.y);
}

// delta = <dO, O> of rows g and g + 8: diagonals of dO O^T.
template <typename T, int kDim>
__device__ __forceinline__ void TileDelta(float (&delta)[2], const RowFragments<T, kDim>& dout,
                                          const char* out, int row) {
  const int g = LaneId() / 4;
  const TransposedFragments<T, kDim> columns(out, row);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float c[4] = {};
    MultiplyStripVectors(c, dout, columns, half);
    // Row g's element of column g lies in the quad's lane g / 2.
    const float mine = g % 2 == 0 ? c[half * 2] : c[half * 2 + 1];
    delta[half] = __shfl_sync(0xFFFFFFFFU, mine, g * 4 + g / 2);
  }
}

// p = exp(scale s + bias + mask - lse) and ds = p (dp - delta) of a lane's keys of one query.
__device__ __forceinline__ void StripGradient(float (&s)[2][4], float (&ds)[2][4], int half,
                                              const float4& bias, const float4& term, float scale,
                                              float lse, float delta) {
  const float add[4] = {bias.x + term.x, bias.y + term.y, bias.z + term.z, bias.w + term.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float& x = s[i / 2][half * 2 + i % 2];
    float& y = ds[i / 2][half * 2 + i % 2];
    x = StripExp(fmaf(x, scale, add[i]), lse);
    y = x * (y - delta);
  }
}

// Stores ds of four keys of a query, of which `left` exist.
__device__ __forceinline__ void StoreStripBiasGradient(float* to, bool vectors, int left,
                                                       const float (&ds)[2][4], int half) {
  if (vectors) {
    if (left > 0) {
      *reinterpret_cast<float4*>(to) =
          make_float4(ds[0][half * 2], ds[0][half * 2 + 1], ds[1][half * 2], ds[1][half * 2 + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) to[i] = ds[i / 2][half * 2 + i % 2];
    }
  }
}

// The transposed of an A fragment.
template <typename T>
__device__ __forceinline__ typename Mma<T>::A Transposed(const typename Mma<T>::A& a) {
  return {{TransposeMatrix(a.r[0]), TransposeMatrix(a.r[2]), TransposeMatrix(a.r[1]),
           TransposeMatrix(a.r[3])}};
}

template <typename T, int kTiles, int kDim, bool kRows>
struct StripGradients {
  static constexpr int kOut = StripBackward<T, kTiles, kDim>::kOut;
  float dk[kTiles][kOut][4] = {}, dv[kTiles][kOut][4] = {};

  // Adds 16 queries, `tile` of the strip; stores their dBias and the block's part of their dQ.
  __device__ __forceinline__ void Add(const StripProblem& p,
                                      const typename StripBackward<T, kTiles, kDim>::Shared& shared,
                                      int first_query, int tile, int first_key, float* dq_part) {
    using Backward = StripBackward<T, kTiles, kDim>;
    using Columns = ColumnFragments<T, kDim>;
    const int g = LaneId() / 4, t = LaneId() % 4;
    const RowFragments<T, kDim> q(shared.q, tile * 16), dout(shared.dout, tile * 16);
    float lse[2], delta[2];
    int keys_left[2];
    float* dbias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile * 16 + half * 8 + g, query = first_query + row;
      const bool inside = query < p.queries;
      lse[half] = inside ? shared.lse[row] : kInfinity;
      keys_left[half] = inside ? p.keys - first_key - t * 4 : 0;
      dbias[half] = p.dbias + (StripStatistic<kRows>(p) + query) * p.keys + first_key + t * 4;
    }
    TileDelta<T, kDim>(delta, dout, shared.out, tile * 16);
    const Columns q_columns(shared.q, tile * 16);
    const Columns dout_columns(shared.dout, tile * 16);
    float dq[kOut][4] = {};
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float s[2][4] = {}, ds[2][4] = {};
      {
        const TransposedFragments<T, kDim> k(shared.k, m * 16), v(shared.v, m * 16);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          MultiplyStripVectors(s[j], q, k, j);
          MultiplyStripVectors(ds[j], dout, v, j);
        }
      }
      const float4 term = *reinterpret_cast<const float4*>(shared.terms + m * 16 + t * 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * 16 + half * 8 + g;
        const float4 bias =
            ReadStripBias<T>(p, shared.bias, row * Backward::kBiasPitch + m * 16 + t * 4);
        StripGradient(s, ds, half, bias, term, p.scale, lse[half], delta[half]);
        if (p.dbias != nullptr) {
          StoreStripBiasGradient(dbias[half] + m * 16, p.dbias_vectors, keys_left[half] - m * 16,
                                 ds, half);
        }
      }
      const auto a = Mma<T>::FromAccumulators(ds[0], ds[1]);
      Columns(shared.k, m * 16).MultiplyInto(dq, a);
      q_columns.MultiplyInto(dk[m], Transposed<T>(a));
      dout_columns.MultiplyInto(dv[m], Transposed<T>(Mma<T>::FromAccumulators(s[0], s[1])));
    }
    if (p.dq.data == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + tile * 16 + half * 8 + g;
      if (query >= p.queries) continue;
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        *reinterpret_cast<float2*>(dq_part + query * kDim + n * 8 + t * 2) =
            make_float2(dq[n][half * 2], dq[n][half * 2 + 1]);
      }
    }
  }

  // A warp's part of dK and dV, rows in the order of the scores' columns.
  __device__ __forceinline__ void Put(float* sums) const {
    constexpr int kPitch = kSumPitch<kDim>;
    float* const to = sums + LaneId() / 4 * kPitch + LaneId() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      const int m = i / 2, half = i % 2;
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        *reinterpret_cast<float2*>(to + i * 8 * kPitch + n * 8) =
            make_float2(dk[m][n][half * 2], dk[m][n][half * 2 + 1]);
        *reinterpret_cast<float2*>(to + (kTiles * 16 + i * 8) * kPitch + n * 8) =
            make_float2(dv[m][n][half * 2], dv[m][n][half * 2 + 1]);
      }
    }
  }
};

}  // namespace megafold::cuda
