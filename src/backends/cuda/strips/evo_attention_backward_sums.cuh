// The sums of the backward in strips: dK and dV over a block's warps, dQ over the blocks.
#pragma once

#include <cstdint>

#include "backends/cuda/strips/evo_attention_backward_copies.cuh"

namespace megafold::cuda {

// Sums the warps' parts of dK and dV in their order and stores them.
template <typename T, int kTiles, int kDim, bool kRows>
__device__ __forceinline__ void StoreKeyGradients(const StripProblem& p, const float* sums,
                                                  int warps, int first_key) {
  using Backward = StripBackward<T, kTiles, kDim>;
  constexpr int kQuads = kDim / 4;
#pragma unroll 1
  for (int quad = static_cast<int>(threadIdx.x); quad < 2 * Backward::kKeys * kQuads;
       quad += static_cast<int>(blockDim.x)) {
    const int row = quad / kQuads, column = quad % kQuads * 4;
    const bool is_k = row < Backward::kKeys;
    const int key = first_key + StripOrder(is_k ? row : row - Backward::kKeys);
    const StripOperand& to = is_k ? p.dk : p.dv;
    if (key >= p.keys || column >= p.dim || to.data == nullptr) continue;
    const float* const from = sums + row * kSumPitch<kDim> + column;
    float4 part[kStripWarps];
#pragma unroll
    for (int warp = 0; warp < kStripWarps; ++warp) {
      part[warp] = *reinterpret_cast<const float4*>(from + min(warp, warps - 1) * Backward::kSums);
    }
    float4 sum = part[0];
#pragma unroll
    for (int warp = 1; warp < kStripWarps; ++warp) {
      if (warp >= warps) break;
      sum.x += part[warp].x;
      sum.y += part[warp].y;
      sum.z += part[warp].z;
      sum.w += part[warp].w;
    }
    StoreQuad<T, kRows>(to, is_k ? p.row.dk : p.row.dv, key, column, sum, is_k ? p.scale : 1.0F);
  }
}

// dQ = scale times the sum of the blocks' parts, in their order; four elements a thread.
template <typename T, int kDim, bool kRows>
__global__ void StripQueryGradientKernel(const __grid_constant__ StripProblem p, int parts,
                                         const float* __restrict__ dq_parts) {
  constexpr int kQuads = kDim / 4;
  const int quad = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int query = quad / kQuads, column = quad % kQuads * 4;
  if (query >= p.queries || column >= p.dim) return;
  const float* from = dq_parts + StripStatistic<kRows>(p) * parts * kDim + query * kDim + column;
  const std::int64_t stride = static_cast<std::int64_t>(p.queries) * kDim;
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 8
  for (int part = 0; part < parts; ++part, from += stride) {
    const float4 x = __ldcg(reinterpret_cast<const float4*>(from));
    sum.x += x.x;
    sum.y += x.y;
    sum.z += x.z;
    sum.w += x.w;
  }
  StoreQuad<T, kRows>(p.dq, p.row.dq, query, column, sum, p.scale);
}

}  // namespace megafold::cuda
