// Backward of EvoAttention for small grids in one pass: five products and one exponential a score.
// A block owns one to three tiles of 16 keys of one head and row; each warp takes all of them and
// strips of 32 queries, 16 at a time. dK and dV are summed over the block's warps; its part of dQ
// goes to workspace, and a second kernel sums those of all blocks. Scores have queries as rows, so
// that bias and dBias are read and stored as vectors; p and ds are transposed in registers for dV
// and dK.
//
// Lane t of four holds of a query keys 4 t to 4 t + 3 of each tile: column c of score tile j (of 8
// columns) is key 4 (c / 2) + 2 j + c % 2. K and V lie in shared memory in that order.
#pragma once

#include <algorithm>

#include "backends/cuda/strips/evo_attention_backward_products.cuh"
#include "backends/cuda/strips/evo_attention_backward_sums.cuh"

namespace megafold::cuda {

template <typename T, int kTiles, int kDim, bool kRows>
__global__ __launch_bounds__(kStripWarps *
                             32) void StripBackwardKernel(const __grid_constant__ StripProblem p,
                                                          float* __restrict__ dq_parts) {
  using Backward = StripBackward<T, kTiles, kDim>;
  extern __shared__ __align__(128) char memory[];
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int first_key = static_cast<int>(blockIdx.x) * Backward::kKeys;
  const typename Backward::Shared shared(memory, warp);
  float* const dq_part = dq_parts + (StripStatistic<kRows>(p) * gridDim.x +
                                     static_cast<std::int64_t>(blockIdx.x) * p.queries) *
                                        kDim;

  const int thread = static_cast<int>(threadIdx.x), lane = LaneId();
  const StripMask<kRows> mask(p, first_key + thread);
  CopyStripKeys<T, kTiles, kDim, kRows>(p, shared, warp, warps, first_key);
  StripGradients<T, kTiles, kDim, kRows> gradients;
  int first_query = warp * kStrip;
  bool begins = true;
  const QueryCopies<T, kTiles, kDim, kRows> copies(p, first_key);
#pragma unroll 1
  do {
    // Two groups of copies, so that the first 16 queries do not wait for the others.
    const int query = min(first_query + lane, p.queries - 1);
    CopyAsync4(SharedAddress(shared.lse + lane), p.lse + StripStatistic<kRows>(p) + query, 4);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      copies.Run(p, shared, first_query, tile * 16, first_key);
      CopyAsyncCommit();
    }
    if (begins && thread < Backward::kKeys) shared.terms[thread] = mask.template Term<T>(p);
#pragma unroll 1
    for (int tile = 0; tile < 2 && first_query + tile * 16 < p.queries; ++tile) {
      if (tile == 0) {
        CopyAsyncWait<1>();
      } else {
        CopyAsyncWait<0>();
      }
      if (begins) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      begins = false;
      gradients.Add(p, shared, first_query, tile, first_key, dq_part);
    }
    CopyAsyncWait<0>();
    __syncwarp();
    first_query += warps * kStrip;
  } while (first_query < p.queries);
  if (begins) __syncthreads();  // a warp without queries
  __syncthreads();              // the strips' vectors have been read
  gradients.Put(shared.Sums(warp));
  __syncthreads();
  StoreKeyGradients<T, kTiles, kDim, kRows>(p, shared.Sums(0), warps, first_key);
}

template <typename T, int kTiles, int kDim>
void LaunchStripBackward(const StripProblem& p, float* dq_parts, int shared_limit,
                         cudaStream_t stream) {
  using Backward = StripBackward<T, kTiles, kDim>;
  // A thread for each key at least.
  const int warps = std::max(2, StripWarps(p.queries, shared_limit, Backward::Bytes));
  const int blocks = (p.keys + Backward::kKeys - 1) / Backward::kKeys;
  Launch("evo_attention backward (cuda sm80 spread)",
         p.layers > 1 ? StripBackwardKernel<T, kTiles, kDim, true>
                      : StripBackwardKernel<T, kTiles, kDim, false>,
         {.blocks = blocks,
          .threads = warps * 32,
          .shared_bytes = static_cast<std::size_t>(Backward::Bytes(warps)),
          .columns = p.heads,
          .layers = p.layers},
         stream, p, dq_parts);
  if (p.dq.data == nullptr) return;
  constexpr int kThreads = 128;
  Launch("evo_attention dQ (cuda sm80 spread)",
         p.layers > 1 ? StripQueryGradientKernel<T, kDim, true>
                      : StripQueryGradientKernel<T, kDim, false>,
         {.blocks = (static_cast<std::int64_t>(p.queries) * (kDim / 4) + kThreads - 1) / kThreads,
          .threads = kThreads,
          .columns = p.heads,
          .layers = p.layers},
         stream, p, blocks, static_cast<const float*>(dq_parts));
}

}  // namespace megafold::cuda
