// What the Hopper EvoAttention kernels for short keys are told, and the functions that launch them.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "backends/cuda/attention/problem.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

inline constexpr int kHopperShortDim = 32;      // D is padded to that
inline constexpr int kHopperShortKeys = 128;    // keys of a row that a block holds
inline constexpr int kHopperShortQueries = 64;  // queries that it works on at a time
inline constexpr int kHopperShortOutRows = 16;  // of O that a warp stores at a time

// Where an item lies, the work on a head of a row: all queries, or in the forward 128 of them. Also
// how far two items lie apart.
struct ItemPlace {
  int batch = 0, row = 0, head = 0, part = 0;
};

struct HopperShortParams : AttentionProblem {
  // Over (D, token, head, row, batch): rows of 64 bytes, swizzled over their length, zeros past D
  // and past the last token. Boxes of 128 tokens, but for out 16, and 64 for Q, dO and dQ of the
  // backward.
  CUtensorMap q_map{}, k_map{}, v_map{}, out_map{}, dout_map{};
  CUtensorMap dq_map{}, dk_map{}, dv_map{};  // of what is wanted
  int items = 0;
  int parts = 1;        // items of a head of a row
  int query_tiles = 0;  // backward: of 64, of an item
  ItemPlace stride;     // from an item of a block to its next
  int head_stride = 0;  // the same in heads of all rows
  // Forward: a block's first items are fixed; `dealt` counts the others as they are given out, up
  // to last_number (null: all are fixed).
  unsigned long long* dealt = nullptr;
  int fixed_items = 0, last_number = 0;
};

// The kernels of one storage type. Each queues on `stream` and throws kDevice when the launch
// fails.
template <DType kType>
struct HopperShortKeysAttention {
  static void Forward(const HopperShortParams& params, cudaStream_t stream);
  static void Backward(const HopperShortParams& params, cudaStream_t stream);
};

}  // namespace megafold::cuda
