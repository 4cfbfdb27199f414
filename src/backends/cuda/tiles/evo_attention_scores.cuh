// A tile of scores of EvoAttention's backward in registers: bias and mask, delta, and where p and
// ds go.
#pragma once

#include <cstdint>

#include "backends/cuda/tiles/evo_attention_copies.cuh"

namespace megafold::cuda {

// Scores of a warp: 16 queries, warp % 4 of the tile, and 32 keys, half warp / 4. Lane t of four
// has of a query keys 4 t to 4 t + 3 of each 16.
using TileScores = float[1][4][4];

// The four of query g or g + 8 and 16 keys, by reference.
template <typename Scores>
__device__ __forceinline__ auto& TileQuad(Scores& s, int sixteen, int half, int i) {
  return s[0][sixteen * 2 + i / 2][half * 2 + i % 2];
}

// Four neighbours as float32.
__device__ __forceinline__ float4 ReadQuad(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
template <typename T>
__device__ __forceinline__ float4 ReadQuad(const T* from) {
  const float2 low = ReadPair(from), high = ReadPair(from + 2);
  return make_float4(low.x, low.y, high.x, high.y);
}

// x = scale s + bias + mask; `bias` begins at the warp's first query and key, `terms` at the key.
template <typename T, int kPitch>
__device__ __forceinline__ void AddTileTerms(TileScores& s, const AttentionProblem& p,
                                             const char* bias, const float* terms) {
  float4 term[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) term[i] = ReadQuad(terms + i * 16 + LaneId() % 4 * 4);
  const auto add = [&](const auto& read) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int sixteen = i / 2, half = i % 2;
      const float4 x = read(half * 8 * kPitch + sixteen * 16), y = term[sixteen];
      const float sum[4] = {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& score = TileQuad(s, sixteen, half, j);
        score = fmaf(score, p.scale, sum[j]);
      }
    }
  };
  const int at = LaneId() / 4 * kPitch + LaneId() % 4 * 4;
  if (p.bias.kind == TermKind::kFloat32) {
    add([&](int offset) { return ReadQuad(reinterpret_cast<const float*>(bias) + at + offset); });
  } else if (p.bias.kind == TermKind::kStorage) {
    add([&](int offset) { return ReadQuad(reinterpret_cast<const T*>(bias) + at + offset); });
  } else {
    add([](int) { return make_float4(0.0F, 0.0F, 0.0F, 0.0F); });
  }
}

// Sums of p and p dp of a lane's two queries over the tile's keys; the halves of the keys meet in
// shared memory.
__device__ __forceinline__ void TileDeltaFromScores(float (&delta)[2], const TileScores& p,
                                                    const TileScores& dp, float2* sums,
                                                    int first_query, int half_of_keys) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float2 sum = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int n = i / 2, element = half * 2 + i % 2;
      sum.x += p[0][n][element];
      sum.y = fmaf(p[0][n][element], dp[0][n][element], sum.y);
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      sum.x += __shfl_xor_sync(0xFFFFFFFFU, sum.x, offset);
      sum.y += __shfl_xor_sync(0xFFFFFFFFU, sum.y, offset);
    }
    if (LaneId() % 4 == 0) {
      sums[half_of_keys * kScoreTile + first_query + half * 8 + LaneId() / 4] = sum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + half * 8 + LaneId() / 4;
    const float2 low = sums[query], high = sums[kScoreTile + query];
    const float all = low.x + high.x;
    delta[half] = all > 0.0F ? (low.y + high.y) / all : 0.0F;
  }
}

// delta = <dO, O> of a lane's two queries, as diagonals of dO O^T: dp is added up alike, so that
// nothing is left of ds where a query sees one key. `rows` and `out` begin at the warp's queries.
template <typename T, int kDim>
__device__ __forceinline__ void TileDeltaFromOut(float (&delta)[2], const T* rows, const T* out) {
  constexpr int kPitch = kTilePitch<T, kDim>;
  float c[1][2][4] = {};
#pragma unroll
  for (int d = 0; d < kDim; d += 16) MultiplyShared<T, 16, 1, 2, kPitch>(c, rows + d, out + d);
  const int g = LaneId() / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float mine = g % 2 == 0 ? c[0][half][half * 2] : c[0][half][half * 2 + 1];
    delta[half] = __shfl_sync(0xFFFFFFFFU, mine, g * 4 + g / 2);
  }
}

// Puts a warp's scores, rounded, where the products over queries and keys find them.
template <typename T, int kPitch>
__device__ __forceinline__ void PutScores(T* tile, const TileScores& s) {
  T* const to = tile + LaneId() / 4 * kPitch + LaneId() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int n = i / 2, half = i % 2;
    StorePair(to + half * 8 * kPitch + n * 8, s[0][n][half * 2], s[0][n][half * 2 + 1], true);
  }
}

// Stores a warp's ds from `to` on, of which `queries` and `keys` exist, or adds it to what is
// there: a thread meets the same ones in every row.
__device__ __forceinline__ void StoreTileBias(float* to, const TileScores& ds, int stride,
                                              int queries, int keys, bool vectors, bool first) {
  to += LaneId() / 4 * static_cast<std::int64_t>(stride) + LaneId() % 4 * 4;
  queries -= LaneId() / 4;
  keys -= LaneId() % 4 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int sixteen = i / 2, half = i % 2, left = keys - sixteen * 16;
    if (half * 8 >= queries || left <= 0) continue;
    float* const at = to + half * 8 * static_cast<std::int64_t>(stride) + sixteen * 16;
    if (vectors) {
      float4 sum = make_float4(TileQuad(ds, sixteen, half, 0), TileQuad(ds, sixteen, half, 1),
                               TileQuad(ds, sixteen, half, 2), TileQuad(ds, sixteen, half, 3));
      if (!first) {
        const float4 before = ReadQuad(at);
        sum.x += before.x;
        sum.y += before.y;
        sum.z += before.z;
        sum.w += before.w;
      }
      *reinterpret_cast<float4*>(at) = sum;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x = TileQuad(ds, sixteen, half, j);
        if (j < left) at[j] = first ? x : x + at[j];
      }
    }
  }
}

}  // namespace megafold::cuda
