// The forward in strips: the warps' parts of O, and how they are combined
// (evo_attention_forward.cuh).
#pragma once

#include "backends/cuda/strips/strips.cuh"

namespace megafold::cuda {

// Writes a warp's part of O of 16 queries, and what it weighs, to the part's first rows in `sums`
// and `statistics`.
template <int kDim, int kOut>
__device__ __forceinline__ void PutTilePart(float* sums, float2* statistics,
                                            const float (&out)[kOut][4], const float (&maximum)[2],
                                            const float (&sum)[2]) {
  const int g = LaneId() / 4, t = LaneId() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = half * 8 + g;
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      *reinterpret_cast<float2*>(sums + row * kSumPitch<kDim> + n * 8 + t * 2) =
          make_float2(out[n][half * 2], out[n][half * 2 + 1]);
    }
    float total = sum[half];
    total += __shfl_xor_sync(0xFFFFFFFFU, total, 1);
    total += __shfl_xor_sync(0xFFFFFFFFU, total, 2);
    if (t == 0) statistics[row] = make_float2(maximum[half], total);
  }
}

// Combines the warps' parts of four columns of a query in their order, and stores O and the
// log-sum-exp. Row r of the block's part i is row i * kQueries + r of `sums` and `statistics`.
// kAll: there are the most warps that a block may have, and so the parts lie at distances that are
// known.
template <typename T, int kQueries, int kDim, bool kRows, bool kAll>
__device__ __forceinline__ void StoreCombined(const StripProblem& p, const float* sums,
                                              const float2* statistics, int warps, int first_query,
                                              int row, int column) {
  const int query = first_query + row;
  if (query >= p.queries || column >= p.dim) return;
  // Unrolled for the most warps, so that the reads do not wait for each other.
  float2 each[kStripWarps];
  float4 value[kStripWarps];
  float best = -kInfinity;
#pragma unroll
  for (int part = 0; part < kStripWarps; ++part) {
    const int at = (kAll ? part : min(part, warps - 1)) * kQueries + row;
    each[part] = statistics[at];
    value[part] = *reinterpret_cast<const float4*>(sums + at * kSumPitch<kDim> + column);
    best = fmaxf(best, each[part].x);
  }
  const float shift = best == -kInfinity ? 0.0F : best;
  float sum = 0.0F;
  float4 out = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
  for (int part = 0; part < kStripWarps; ++part) {
    const float factor = kAll || part < warps ? StripExp(each[part].x, shift) : 0.0F;
    sum = fmaf(factor, each[part].y, sum);
    out.x = fmaf(value[part].x, factor, out.x);
    out.y = fmaf(value[part].y, factor, out.y);
    out.z = fmaf(value[part].z, factor, out.z);
    out.w = fmaf(value[part].w, factor, out.w);
  }
  StoreQuad<T, kRows>(p.out, p.row.out, query, column, out,
                      sum > 0.0F ? __fdividef(1.0F, sum) : 0.0F);
  if (column == 0) {
    p.lse[StripStatistic<kRows>(p) + query] = sum > 0.0F ? shift + __logf(sum) : kInfinity;
  }
}

// The same for all of a block's queries.
template <typename T, int kQueries, int kDim, bool kRows>
__device__ __forceinline__ void StoreBlock(const StripProblem& p, const float* sums,
                                           const float2* statistics, int warps, int first_query) {
  constexpr int kQuads = kDim / 4;
  const auto store = [&]<bool kAll>() {
#pragma unroll 1
    for (int quad = static_cast<int>(threadIdx.x); quad < kQueries * kQuads;
         quad += static_cast<int>(blockDim.x)) {
      StoreCombined<T, kQueries, kDim, kRows, kAll>(p, sums, statistics, warps, first_query,
                                                    quad / kQuads, quad % kQuads * 4);
    }
  };
  if (warps == kStripWarps) {
    store.template operator()<true>();
  } else {
    store.template operator()<false>();
  }
}

}  // namespace megafold::cuda
