// What the EvoAttention backward in tiles is told, and the functions that launch it.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/attention/problem.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

inline constexpr int kScoreTile = 64;  // queries and keys of a tile of scores

constexpr int CountScoreTiles(int length) { return (length + kScoreTile - 1) / kScoreTile; }

struct TileParams : AttentionProblem {
  float* dbias = nullptr;      // [chunks, groups, H, Nq, Nk], each the sum of chunk_rows rows
  bool dbias_vectors = false;  // four keys of a query lie on 16 bytes
  unsigned chunks = 1, chunk_rows = 1;  // of a group's rows
  // Parts [parts, B, S, H, tiles of 64 vectors, 64, kDim], a tile in the order of the kernel's
  // threads: of dQ where there are several tiles of keys, of dK and dV where there are several
  // parts of the queries.
  float *dq_parts = nullptr, *dk_parts = nullptr, *dv_parts = nullptr;
  int query_tiles = 1;  // of a part of the queries
  int stages = 1;       // of queries in shared memory

  constexpr int QueryParts() const {
    return (CountScoreTiles(queries) + query_tiles - 1) / query_tiles;
  }
};

// The backward of one storage type and one padded head dimension. It queues on `stream` and throws
// kDevice when a launch fails.
template <DType kType, int kDim>
struct TileAttention {
  static void Backward(const TileParams& params, cudaStream_t stream);
  static int BackwardBytes(const TileParams& params);  // of a block's shared memory
};

}  // namespace megafold::cuda
