// LayerNormLinear: LayerNorm followed by a linear layer, without the normalised tensor in memory.
//
//   Y = ((X - mean) * rstd * gamma + beta) W^T + c      mean, var over the K features of a row; rstd = (var + eps)^-1/2
//
//   X [M, K]   gamma, beta [K]   W [C, K] (torch.nn.Linear's layout)   c [C]   Y [M, C]   mean, rstd [M] float32
//
// gamma, beta and c are optional. dtypes: X, W, Y share one of float32, bfloat16, float16 (float64 on the CPU's
// reference); gamma, beta, c are that type or float32. Statistics and accumulation are float32 (float64 for float64).
// strides: the last dimension of every operand is contiguous; row strides are free.
#pragma once

#include <cstddef>

#include "megafold/core/device.h"
#include "megafold/core/tensor_view.h"
#include "megafold/core/workspace.h"
#include "megafold/ops/tuning.h"

namespace megafold::ops {

struct LayerNormLinearForwardArgs {
  TensorView x;              // [M, K]
  TensorView gamma, beta;    // optional: [K]
  TensorView weight;         // [C, K]
  TensorView linear_bias;    // optional: [C]
  float eps = 1e-5F;
  TensorView y;              // [M, C], written
  TensorView mean, rstd;     // [M] float32 (float64 for float64), contiguous, written
};

struct LayerNormLinearBackwardArgs {
  TensorView x, gamma, beta, weight;  // as in forward
  TensorView mean, rstd;              // as forward wrote them
  TensorView dy;                      // [M, C]
  // Written where defined; an undefined gradient is not computed.
  TensorView dx;                      // [M, K]
  TensorView dgamma, dbeta;           // [K], dtype of gamma / beta
  TensorView dweight;                 // [C, K], dtype of weight
  TensorView dlinear_bias;            // [C], dtype of linear_bias
};

std::size_t LayerNormLinearForwardWorkspace(const LayerNormLinearForwardArgs& args);
std::size_t LayerNormLinearBackwardWorkspace(const LayerNormLinearBackwardArgs& args);

// Errors as for EvoAttention. Sums over M are taken in a fixed order: backward is bitwise repeatable for a given number
// of threads.
void LayerNormLinearForward(const LayerNormLinearForwardArgs& args, Workspace workspace, Stream stream);
void LayerNormLinearBackward(const LayerNormLinearBackwardArgs& args, Workspace workspace, Stream stream);

// The problem's class and who could run it, for measuring. Throws like the call itself when the arguments are invalid.
TuningCandidates Candidates(const LayerNormLinearForwardArgs& args);
TuningCandidates Candidates(const LayerNormLinearBackwardArgs& args);

}  // namespace megafold::ops
