// What the EvoAttention kernels for small grids are told, and the functions that launch them.
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
  int tiles = 1;                // of 16 vectors in a block
  std::int64_t key_blocks = 0;  // the backward's first blocks, which own keys
  std::int64_t query_blocks = 0;
  float* dbias = nullptr;   // [groups, H, Nq, Nk]
  bool bias_pairs = false;  // a query's bias can be read two keys at a time
  bool dbias_pairs = false;
};

// The kernels of one storage type and one padded head dimension. Each queues on `stream` and throws
// kDevice when the launch fails.
template <DType kType, int kDim>
struct SpreadAttention {
  static void Forward(const SpreadParams& params, cudaStream_t stream);
  static void Backward(const SpreadParams& params, cudaStream_t stream);
};

// Most vectors of a warp in a round: their scores stay in registers, beside what the warp keeps and
// sums, and their operands in the 99 KiB of shared memory that every supported device has.
constexpr int SpreadForwardStep(int dim) { return dim <= 48 ? 96 : 80; }
constexpr int SpreadBackwardStep(int dim) { return dim <= 32 ? 96 : dim <= 48 ? 64 : 48; }

}  // namespace megafold::cuda
