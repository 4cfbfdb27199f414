// What the EvoAttention kernels for short keys are told, and the functions that launch them.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/attention/problem.h"
#include "backends/cuda/short_keys/evo_attention_plan.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

inline constexpr int kShortQueryTile = 32;  // queries that the backward works on at a time

struct ShortKeysParams : AttentionProblem {
  RowRanges ranges = {};
  float* dbias = nullptr;        // [groups, H, Nq, Nk]
  float* dbias_parts = nullptr;  // [2 teams, H, Nq, Nk]
  int ahead = 1;  // query tiles whose copies are under way while one is worked on: 1 or 3
};

// The kernels of one storage type and one padded head dimension. Each queues on `stream` and throws
// kDevice when the launch fails.
template <DType kType, int kDim>
struct ShortKeysAttention {
  static void Forward(const ShortKeysParams& params, cudaStream_t stream);
  static int ForwardSharedBytes();  // of the largest block
  static int BackwardSharedBytes(bool bias, int ahead);
  static void Backward(const ShortKeysParams& params, cudaStream_t stream);
};

// dbias from its parts, in the order of teams, for the groups that were divided.
void SumBiasParts(const ShortKeysParams& params, cudaStream_t stream);

}  // namespace megafold::cuda
