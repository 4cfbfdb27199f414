// TriangleMultiplication: the triangular multiplicative update, outgoing and incoming edges.
//
//   Z = LayerNorm_in(X)
//   A = mask * sigmoid(Z Wag^T) * (Z Wap^T)        Bm = mask * sigmoid(Z Wbg^T) * (Z Wbp^T)
//   T[i,j] = sum_k A[i,k] Bm[j,k]  (outgoing)      T[i,j] = sum_k A[k,i] Bm[k,j]  (incoming)
//   Y = sigmoid(Z Wog^T) * ( LayerNorm_out(T) Wop^T )
//
//   X, Y [B, N, N, C]   mask [B, N, N], optional   T [B, N, N, Ch]
//   Wap, Wag, Wbp, Wbg [Ch, C]   Wop [C, Ch]   Wog [C, C]   (torch.nn.Linear's layout, no bias, as in AlphaFold 3)
//   LayerNorm_in gamma, beta [C]; LayerNorm_out gamma, beta [Ch]; all four optional
//
// dtypes: X, Y and the weights share one of float32, bfloat16, float16 (float64 on the CPU's reference); LayerNorm
// parameters are that type or float32; mask is bool or a floating factor (that type or float32) and gets no gradient.
// Statistics and accumulation are float32. strides: the last dimension is contiguous, the others are free.
// Saved for backward: X, and T in the storage type; the rest is recomputed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "megafold/core/device.h"
#include "megafold/core/tensor_view.h"
#include "megafold/core/workspace.h"
#include "megafold/ops/tuning.h"

namespace megafold::ops {

enum class TriangleDirection : std::uint8_t { kOutgoing, kIncoming };

// One set of parameters; the same struct names their gradients in backward (undefined = not computed).
struct TriangleMultiplicationParams {
  TensorView gamma_in, beta_in;    // optional: [C]
  TensorView wap, wag, wbp, wbg;   // [Ch, C]
  TensorView gamma_out, beta_out;  // optional: [Ch]
  TensorView wop;                  // [C, Ch]
  TensorView wog;                  // [C, C]
};

struct TriangleMultiplicationForwardArgs {
  TriangleDirection direction = TriangleDirection::kOutgoing;
  TensorView x;     // [B, N, N, C]
  TensorView mask;  // optional: [B, N, N]
  TriangleMultiplicationParams params;
  float eps = 1e-5F;
  TensorView y;         // [B, N, N, C], written
  TensorView triangle;  // [B, N, N, Ch], written: T, for backward
};

struct TriangleMultiplicationBackwardArgs {
  TriangleDirection direction = TriangleDirection::kOutgoing;
  TensorView x, mask;
  TriangleMultiplicationParams params;
  float eps = 1e-5F;
  TensorView triangle;  // as forward wrote it
  TensorView dy;        // [B, N, N, C]
  TensorView dx;        // [B, N, N, C], written where defined
  TriangleMultiplicationParams dparams;
};

std::size_t TriangleMultiplicationForwardWorkspace(const TriangleMultiplicationForwardArgs& args);
std::size_t TriangleMultiplicationBackwardWorkspace(const TriangleMultiplicationBackwardArgs& args);

void TriangleMultiplicationForward(const TriangleMultiplicationForwardArgs& args, Workspace workspace,
                                   Stream stream);
void TriangleMultiplicationBackward(const TriangleMultiplicationBackwardArgs& args,
                                    Workspace workspace, Stream stream);

// The problem's class and who could run it, for measuring. Throws like the call itself when the arguments are invalid.
TuningCandidates Candidates(const TriangleMultiplicationForwardArgs& args);
TuningCandidates Candidates(const TriangleMultiplicationBackwardArgs& args);

}  // namespace megafold::ops
