// An EvoAttention call as the kernels see it, whichever path runs them.
//
// "Rows" are the (batch, row) pairs that share one bias: all of a batch's rows, or those of every
// batch when the bias is shared by the batches. A "group" is one such set. Several rows of a group
// are worked on at once so that a tile of bias is read once for all of them.
#pragma once

#include <cstdint>

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

struct AttentionProblem {
  AttentionOperand q, k, v, out, dout, dq, dk, dv;
  AttentionMask mask;
  AttentionBias bias;
  float* lse = nullptr;                      // [B, S, H, Nq], natural logarithm
  std::int64_t batches = 0, batch_rows = 0;  // B, S
  std::int64_t groups = 0, rows = 0;         // rows of a group
  int heads = 0, queries = 0, keys = 0, dim = 0;
  float scale = 1;
  bool allow_tf32 = false;
};

}  // namespace megafold::cuda
