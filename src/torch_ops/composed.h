// The operators as compositions of PyTorch's own: what computes them on a device for which this
// build has no kernel and, but for attention (model/layers.h), what `ops: baseline` trains with.
// Arguments and results as in ops.h; dtypes may be mixed as there.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "megafold/ops/operators.h"

namespace megafold::torch_ops {

// True when this build has no kernel of `op` for the tensor's device. The first time for each
// operator a warning (PyTorch's, once) says so, unless OperatorsWithoutKernel has told already.
bool LacksKernel(ops::Operator op, const at::Tensor& lead);

// The operators that this build computes with PyTorch's on that device, by name: for a program to
// show.
std::vector<std::string> OperatorsWithoutKernel(const at::Device& device);

namespace composed {

// Has N^3 tensors: two of the scores' size stay until the backward.
at::Tensor EvoAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const std::optional<at::Tensor>& mask,
                        const std::optional<at::Tensor>& bias, double scale);

at::Tensor LayerNorm(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                     const std::optional<at::Tensor>& beta, double eps);

at::Tensor LayerNormLinear(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                           const std::optional<at::Tensor>& beta, const at::Tensor& weight,
                           const std::optional<at::Tensor>& linear_bias, double eps);

at::Tensor Transition(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                      const std::optional<at::Tensor>& beta, const at::Tensor& g1,
                      const at::Tensor& g2, const at::Tensor& w2, double eps);

at::Tensor TriangleMultiplication(const at::Tensor& x, const std::optional<at::Tensor>& mask,
                                  bool outgoing, const std::optional<at::Tensor>& gamma_in,
                                  const std::optional<at::Tensor>& beta_in, const at::Tensor& wap,
                                  const at::Tensor& wag, const at::Tensor& wbp,
                                  const at::Tensor& wbg, const std::optional<at::Tensor>& gamma_out,
                                  const std::optional<at::Tensor>& beta_out, const at::Tensor& wop,
                                  const at::Tensor& wog, double eps);

}  // namespace composed
}  // namespace megafold::torch_ops
