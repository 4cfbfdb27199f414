// The fused operators on at::Tensor: what C++ models call, and what torch.ops.megafold.* is made
// of.
//
// Every function goes through PyTorch's dispatcher, so autograd, autocast, meta tensors and
// torch.compile see it, and a tensor's device chooses the implementation. Formulas are those of
// include/megafold/ops/.
//
// Autocast: floating operands of fp32, bf16 or fp16 are cast to the autocast type, save those that
// the kernels may read in fp32 beside lower-precision ones (attention bias and mask, LayerNorm's
// gamma and beta, the linear bias, the triangle's mask); those are left as they are. dtypes:
// without autocast nothing is cast: a mismatch is an error. Layout: an operand whose last dimension
// is not contiguous, or whose leading dimensions cannot be seen as one, is copied. Gradients are
// computed only for operands that ask for one, and come back in the operand's dtype. Errors: a
// shape, dtype or device outside the contract throws megafold::Error (RuntimeError in Python) that names
// the operand and the expected value. Second derivatives are not implemented and say so. Where this
// build has no kernel of an operator other than attention for the device, PyTorch's operators
// compute it, with one warning (composed.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace megafold::torch_ops {

// O[b,s,i,h,:] = sum_j softmax_j( scale <q[b,s,i,h,:], k[b,s,j,h,:]> + bias[b,0,h,i,j] +
// mask[b,s,0,0,j] ) v[b,s,j,h,:]
//
// q [B, S, Nq, H, D]; k, v [B, S, Nk, H, D]; mask [B or 1, S or 1, 1, 1, Nk], bool (true = attend)
// or additive; bias [B or 1, 1, H, Nq, Nk]; scale defaults to D^-1/2. Returns [B, S, Nq, H, D]. The
// mask gets no gradient. Strides are free but on the last dimension: pass transposed views, not
// copies.
at::Tensor EvoAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const std::optional<at::Tensor>& mask = std::nullopt,
                        const std::optional<at::Tensor>& bias = std::nullopt,
                        std::optional<double> scale = std::nullopt);

// Y = LayerNorm(x) weight^T + linear_bias. x [..., K]; gamma, beta [K]; weight [C, K]; linear_bias
// [C]. Returns [..., C].
at::Tensor LayerNormLinear(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                           const std::optional<at::Tensor>& beta, const at::Tensor& weight,
                           const std::optional<at::Tensor>& linear_bias, double eps = 1e-5);

// Y = (silu(U g1^T) * (U g2^T)) w2^T, U = LayerNorm(x). x [..., K]; g1, g2 [E*K, K]; w2 [K, E*K].
// Returns the shape of x.
at::Tensor Transition(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                      const std::optional<at::Tensor>& beta, const at::Tensor& g1,
                      const at::Tensor& g2, const at::Tensor& w2, double eps = 1e-5);

// Y = sigmoid(Z wog^T) * (LayerNorm_out(T) wop^T), Z = LayerNorm_in(x), with T the sum over k of
// the gated, masked projections a[i,k] b[j,k] (outgoing) or a[k,i] b[k,j] (incoming). x [B, N, N,
// C]; mask [B, N, N], bool or a floating factor, without gradient; wap, wag, wbp, wbg [Ch, C]; wop
// [C, Ch]; wog [C, C]. Returns the shape of x.
at::Tensor TriangleMultiplication(const at::Tensor& x, const std::optional<at::Tensor>& mask,
                                  bool outgoing, const std::optional<at::Tensor>& gamma_in,
                                  const std::optional<at::Tensor>& beta_in, const at::Tensor& wap,
                                  const at::Tensor& wag, const at::Tensor& wbp,
                                  const at::Tensor& wbg, const std::optional<at::Tensor>& gamma_out,
                                  const std::optional<at::Tensor>& beta_out, const at::Tensor& wop,
                                  const at::Tensor& wog, double eps = 1e-5);

}  // namespace megafold::torch_ops
