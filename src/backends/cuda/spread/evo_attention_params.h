// What the EvoAttention kernels for small grids are told, and the functions that launch them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/attention/problem.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

inline constexpr int kSpreadParts = 4;  // warps that share the other side of one tile

// Most tiles of 16 vectors that a block keeps: what its registers hold.
constexpr int SpreadMaxTiles(int dim) { return dim <= 64 ? 3 : 2; }

// The forward of shorter vectors is in strips.
constexpr bool SpreadHasForward(int dim) { return dim > 64; }

// Whether delta of more than kFewKeys keys comes from p and dp too: of so few queries in all that
// one with nearly all its weight on a single key, whose ds is next to nothing, counts. O in 16 bits
// is too coarse for that one.
inline bool AreFewQueries(const AttentionProblem& p) {
  return p.groups * p.rows * p.heads * p.queries <= 128;
}

// Most elements of the parts of dBias together, of rows that share a bias: 5 MiB.
inline constexpr std::int64_t kMaxBiasParts = std::int64_t{5} << 18;

inline std::int64_t BiasElements(const AttentionProblem& p) {
  return p.groups * p.heads * p.queries * p.keys;
}

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
  const float* delta = nullptr;  // [B, S, H, Nq]; none: it is <dO, O>
  float* dbias = nullptr;        // [chunks, groups, H, Nq, Nk], each the sum of chunk_rows rows
  bool dbias_pairs = false;
  unsigned chunks = 1, chunk_rows = 1;  // of a group's rows
};

// The kernels of one storage type and one padded head dimension. They queue on `stream` and throw
// kDevice when the launch fails. The shared memory of a block is that of its steps and tiles.
// Forward does nothing where SpreadHasForward says that there is none. Delta is <dO, O> by p and
// dp, with the steps of the forward.
template <DType kType, int kDim>
struct SpreadAttention {
  static void Forward(const SpreadParams& params, cudaStream_t stream);
  static int ForwardBytes(const SpreadParams& params);
  static void Backward(const SpreadParams& params, cudaStream_t stream);
  static int BackwardBytes(const SpreadParams& params);
  static void Delta(const SpreadParams& params, float* delta, cudaStream_t stream);
};

}  // namespace megafold::cuda
