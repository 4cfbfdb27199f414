// How the kernels that work in strips see an EvoAttention problem: strides of 32 bits, in bytes, so
// that a vector's place costs one instruction.
#pragma once

#include <cstdint>

#include "backends/cuda/attention/problem.h"
#include "megafold/core/support.h"

namespace megafold::cuda {

// The vectors of one head and row lie within 4 GiB from its first one.
struct StripOperand {
  void* data = nullptr;
  std::uint32_t token = 0, head = 0;
};

// Bytes from a row to the next one, over all batches.
struct StripRows {
  std::int64_t q = 0, k = 0, v = 0, out = 0, dout = 0, dq = 0, dk = 0, dv = 0, mask = 0, bias = 0;
};

// What a kernel reads first stands first.
struct StripProblem {
  StripOperand q, k, v, out;
  const void *bias = nullptr, *mask = nullptr;
  float* lse = nullptr;
  std::uint32_t bias_head = 0;                               // bytes
  std::uint32_t bias_query = 0, bias_key = 0, mask_key = 0;  // elements
  int queries = 0, keys = 0, dim = 0, heads = 0;
  int layers = 0;  // rows of all batches
  float scale = 1;
  TermKind bias_kind = TermKind::kNone, mask_kind = TermKind::kNone;
  bool bias_vectors = false;   // eight keys of a query lie side by side, on 16 bytes
  bool dbias_vectors = false;  // four keys of a query do
  StripOperand dout, dq, dk, dv;
  float* dbias = nullptr;  // [groups, H, Nq, Nk]
  StripRows row;
};

// Fills `to`, or says what it cannot hold. Of dbias it sets neither the pointer nor dbias_vectors.
Support MakeStripProblem(const AttentionProblem& from, StripProblem& to);

}  // namespace megafold::cuda
