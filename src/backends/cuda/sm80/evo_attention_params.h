// What the portable EvoAttention kernels are told, and the functions that launch them.
//
// "Rows" are the (batch, row) pairs that share one bias: all of a batch's rows, or those of every
// batch when the bias is shared by the batches. A "group" is one such set. Several rows of a group
// are worked on at once so that a tile of bias is read once for all of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "megafold/core/dtype.h"

namespace megafold::cuda {

// A [B, S, N, H, D] operand; strides in elements, the last one is 1.
struct AttentionOperand {
  void* data = nullptr;
  std::int64_t batch = 0, row = 0, token = 0, head = 0;
  bool aligned = false;  // every vector starts on 16 bytes
};

enum class TermKind : int { kNone, kBool, kFloat32, kStorage };

struct AttentionMask {
  const void* data = nullptr;
  TermKind kind = TermKind::kNone;
  std::int64_t batch = 0, row = 0, key = 0;
};

struct AttentionBias {
  const void* data = nullptr;
  TermKind kind = TermKind::kNone;
  std::int64_t group = 0, head = 0, query = 0, key = 0;
  bool aligned = false;  // key stride 1 and every row starts on 16 bytes
};

struct AttentionParams {
  AttentionOperand q, k, v, out, dout, dq, dk, dv;
  AttentionMask mask;
  AttentionBias bias;
  float* lse = nullptr;                      // [B, S, H, Nq], natural logarithm
  float* delta = nullptr;                    // [B, S, H, Nq], sum over D of dO * O
  float* dbias = nullptr;                    // [chunks, groups, H, Nq, Nk]
  std::int64_t batches = 0, batch_rows = 0;  // B, S
  std::int64_t groups = 0, rows = 0;         // rows of a group
  std::int64_t row_chunks = 1;               // dBias: parts that a group's rows are summed in
  int heads = 0, queries = 0, keys = 0, dim = 0;
  float scale = 1;
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

// delta[b,s,h,i] = sum_d dO[b,s,i,h,d] O[b,s,i,h,d].
void AttentionDelta(const AttentionParams& params, DType type, cudaStream_t stream);
// out[i] = sum over c of parts[c * count + i], in the order of c.
void SumParts(const float* parts, float* out, std::int64_t parts_count, std::int64_t count,
              cudaStream_t stream);

}  // namespace megafold::cuda
