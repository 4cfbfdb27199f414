// Transition: LayerNorm, SwiGLU and the projection back, without the E*K-wide hidden tensor in memory.
//
//   Y = ( silu(U G1^T) * (U G2^T) ) W2^T,    U = LayerNorm(X) = (X - mean) * rstd * gamma + beta,    silu(t) = t sigmoid(t)
//
//   X, Y [M, K]   gamma, beta [K]   G1, G2 [E*K, K]   W2 [K, E*K]   mean, rstd [M] float32
//
// gamma and beta are optional; the linear layers have no bias, as in AlphaFold 3. dtypes, strides and errors as for
// LayerNormLinear. Saved for backward: X, mean, rstd. The hidden tensor is recomputed a tile at a time.
#pragma once

#include <cstddef>

#include "megafold/core/device.h"
#include "megafold/core/tensor_view.h"
#include "megafold/core/workspace.h"
#include "megafold/ops/tuning.h"

namespace megafold::ops {

struct TransitionForwardArgs {
  TensorView x;            // [M, K]
  TensorView gamma, beta;  // optional: [K]
  TensorView g1, g2;       // [E*K, K]: gate (through silu) and value
  TensorView w2;           // [K, E*K]
  float eps = 1e-5F;
  TensorView y;            // [M, K], written
  TensorView mean, rstd;   // [M] float32 (float64 for float64), contiguous, written
};

struct TransitionBackwardArgs {
  TensorView x, gamma, beta, g1, g2, w2;  // as in forward
  TensorView mean, rstd;                  // as forward wrote them
  TensorView dy;                          // [M, K]
  // Written where defined; an undefined gradient is not computed.
  TensorView dx, dgamma, dbeta, dg1, dg2, dw2;  // shapes and dtypes of their inputs
};

std::size_t TransitionForwardWorkspace(const TransitionForwardArgs& args);
std::size_t TransitionBackwardWorkspace(const TransitionBackwardArgs& args);

void TransitionForward(const TransitionForwardArgs& args, Workspace workspace, Stream stream);
void TransitionBackward(const TransitionBackwardArgs& args, Workspace workspace, Stream stream);

// The problem's class and who could run it, for measuring. Throws like the call itself when the arguments are invalid.
TuningCandidates Candidates(const TransitionForwardArgs& args);
TuningCandidates Candidates(const TransitionBackwardArgs& args);

}  // namespace megafold::ops
