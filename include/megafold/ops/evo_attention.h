// EvoAttention: attention with a pair bias and a key mask, the four attentions of AlphaFold-style models.
//
//   O[b,s,i,h,:] = sum_j softmax_j( scale <Q[b,s,i,h,:], K[b,s,j,h,:]> + bias[b,0,h,i,j] + mask[b,s,0,0,j] ) V[b,s,j,h,:]
//
//   use                               Q                   K, V                bias                 mask
//   single attention with pair bias   [B, 1, N, H, D]     [B, 1, N, H, D]     [B, 1, H, N, N]      [B, 1, 1, 1, N]
//   triangle attention                [B, N, N, H, D]     [B, N, N, H, D]     [B, 1, H, N, N]      [B, N, 1, 1, N]
//   MSA row-wise                      [B, S, N, H, D]     [B, S, N, H, D]     [B, 1, H, N, N]      [B, S, 1, 1, N]
//   MSA column-wise                   [B, N, S, H, D]     [B, N, S, H, D]     none                 [B, N, 1, 1, S]
// The query and key lengths may differ (atom windows: 32 queries, 128 keys).
//
// dtypes: Q, K, V, O share one of float32, bfloat16, float16 (float64 on the CPU's reference). bias is that type or
// float32. mask is bool (true = attend) or additive, of that type or float32. Softmax statistics and every accumulation
// are float32 (float64 for float64).
// strides: free on every dimension but the last of Q, K, V, O and their gradients, which must be 1. The ending node's
// attention passes transposed strides instead of a transposed copy. Every stride of bias and mask is free. The batch
// dimension of bias and mask, and the row dimension of mask, may have size 1: they are then shared. dBias sums over the
// rows and, where bias has batch size 1, over the batches.
// masking: a query whose keys are all masked, by a bool mask or by terms of -inf, gives O = 0 and lse = +inf, and zero
// gradients. Models also write -1e9 or the lowest number for -inf: where such terms hide every key of a query, the CPU gives
// their softmax, as the formula says, and the GPU that softmax to few digits or what it gives for -inf.
#pragma once

#include <cstddef>

#include "megafold/core/device.h"
#include "megafold/core/tensor_view.h"
#include "megafold/core/workspace.h"
#include "megafold/ops/tuning.h"

namespace megafold::ops {

struct EvoAttentionForwardArgs {
  TensorView q;     // [B, S, Nq, H, D]
  TensorView k;     // [B, S, Nk, H, D]
  TensorView v;     // [B, S, Nk, H, D]
  TensorView mask;  // optional: [B or 1, S or 1, 1, 1, Nk]
  TensorView bias;  // optional: [B or 1, 1, H, Nq, Nk]
  float scale = 1;  // multiplies <Q, K>; D^-1/2 for the usual softmax temperature
  // float32 on a GPU: products of operands rounded to TF32 (relative error about 3e-4 instead of 1e-6), in a third of the
  // matrix instructions. Ignored elsewhere.
  bool allow_tf32 = false;
  TensorView out;   // [B, S, Nq, H, D], written
  TensorView lse;   // [B, S, H, Nq] float32 (float64 for float64), contiguous, written: natural-log sum of exponentials
};

struct EvoAttentionBackwardArgs {
  TensorView q, k, v, mask, bias;  // as in forward
  float scale = 1;
  bool allow_tf32 = false;
  TensorView out, lse;  // as forward wrote them
  TensorView dout;      // [B, S, Nq, H, D]
  // Written where defined; an undefined gradient is not computed.
  TensorView dq, dk, dv;  // shapes and dtype of q, k, v; last stride 1
  TensorView dbias;       // shape of bias, float32 (float64 for float64), contiguous
};

// Bytes of scratch that the call needs; zero for most. Throws like the call itself when the arguments are invalid.
std::size_t EvoAttentionForwardWorkspace(const EvoAttentionForwardArgs& args);
std::size_t EvoAttentionBackwardWorkspace(const EvoAttentionBackwardArgs& args);

// Queue the operator on `stream` (run it, on the CPU). Throws megafold::Error: kInvalidArgument for a shape, stride,
// dtype or device outside the contract above, kUnsupported when no implementation accepts the problem (the message lists
// every refusal), kDevice when a launch fails. Backward is bitwise repeatable.
void EvoAttentionForward(const EvoAttentionForwardArgs& args, Workspace workspace, Stream stream);
void EvoAttentionBackward(const EvoAttentionBackwardArgs& args, Workspace workspace, Stream stream);

// The problem's class and who could run it, for measuring. Throws like the call itself when the arguments are invalid.
TuningCandidates Candidates(const EvoAttentionForwardArgs& args);
TuningCandidates Candidates(const EvoAttentionBackwardArgs& args);

}  // namespace megafold::ops
