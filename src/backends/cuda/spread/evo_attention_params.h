// What the backward of EvoAttention for small grids is told, and the functions that launch it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/attention/problem.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

inline constexpr int kSpreadParts = 4;     // warps that share the other side of one tile
inline constexpr int kSpreadMaxTiles = 3;  // tiles of 16 vectors that a block keeps

// The side that passes by a block, keys or queries, in rounds of kSpreadParts * step vectors.
struct SpreadSide {
  int step = 0;  // vectors of a warp in a round, a multiple of 16
  int rounds = 0;
};

struct SpreadParams : AttentionProblem {
  SpreadSide key_side = {}, query_side = {};
  int tiles = 1;       // of 16 vectors in a block
  int key_blocks = 0;  // of a head and row; in the backward they come before the others
  int query_blocks = 0;
  float* dbias = nullptr;  // [groups, H, Nq, Nk]
  bool dbias_pairs = false;
};

// The kernel of one storage type and one padded head dimension. Backward queues on `stream` and
// throws kDevice when the launch fails. The shared memory of a block is that of its steps and
// tiles.
template <DType kType, int kDim>
struct SpreadAttention {
  static void Backward(const SpreadParams& params, cudaStream_t stream);
  static int BackwardBytes(const SpreadParams& params);
};

}  // namespace megafold::cuda
