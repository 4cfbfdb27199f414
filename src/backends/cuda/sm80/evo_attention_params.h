// What the portable EvoAttention kernels are told, and the functions that launch them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/attention/problem.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

// The kinds of tilings that kernels are built in (evo_attention_tiling.h).
enum class AttentionShape {
  kByHeuristic,
  kShared,  // many queries, several rows share each bias tile
  kSingle,  // one row to a block
  kWindow,  // few queries, one warp to a row
};

struct AttentionParams : AttentionProblem {
  float* delta = nullptr;               // [B, S, H, Nq], sum over D of dO * O
  float* dbias = nullptr;               // [chunks, groups, H, Nq, Nk]
  std::int64_t row_chunks = 1;          // dBias: parts that a group's rows are summed in
  AttentionShape shape = AttentionShape::kByHeuristic;
};

// The kernels of one storage type and one padded head dimension. Each queues on `stream` and throws
// kDevice when the launch fails.
template <DType kType, int kDim>
struct PortableAttention {
  static void Forward(const AttentionParams& params, cudaStream_t stream);
  static void BackwardKeys(const AttentionParams& params, cudaStream_t stream);     // dK, dV
  static void BackwardQueries(const AttentionParams& params, cudaStream_t stream);  // dQ
  static void BackwardBias(const AttentionParams& params, cudaStream_t stream);     // dBias parts
};

// At most so many keys: delta comes from p and dp, because the rounding of O to 16 bits would show.
inline constexpr int kFewKeys = 64;

// delta[b,s,h,i] = sum_d dO[b,s,i,h,d] O[b,s,i,h,d].
void AttentionDelta(const AttentionParams& params, DType type, cudaStream_t stream);
// out[i] = sum over c of parts[c * count + i], in the order of c.
void SumParts(const float* parts, float* out, std::int64_t parts_count, std::int64_t count,
              cudaStream_t stream);

}  // namespace megafold::cuda
