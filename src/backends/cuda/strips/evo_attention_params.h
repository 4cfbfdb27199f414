// The EvoAttention kernels that work in strips.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/strips/strips.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

inline constexpr int kStrip = 32;       // keys that a warp takes at once
inline constexpr int kStripWarps = 12;  // of a block, at most

// Most tiles of 16 queries in a block of the forward, whose warps have one strip each (`once`) or
// several: what a warp's 168 registers hold.
constexpr int StripForwardTiles(int dim, bool once) {
  if (once) return dim <= 48 ? 3 : 2;
  return dim <= 48 ? 2 : 1;
}

// Most tiles of 16 keys in a block of the backward; none: it has no kernel for such vectors.
constexpr int StripBackwardTiles(int dim) { return dim <= 24 ? 3 : 0; }

// The kernels of one storage type and one padded head dimension, with blocks of `tiles` tiles. They
// queue on `stream` and throw kDevice when a launch fails. `dq_parts` is workspace for
// [rows of all batches, H, blocks, Nq, kDim] numbers, unless dQ is not wanted; `shared_limit` how
// many bytes of shared memory a block may have.
template <DType kType, int kDim>
struct StripAttention {
  static void Forward(const StripProblem& p, int tiles, int shared_limit, cudaStream_t stream);
  static void Backward(const StripProblem& p, int tiles, float* dq_parts, int shared_limit,
                       cudaStream_t stream);
};

}  // namespace megafold::cuda
