// Adam over a whole set of parameters at once.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "train/config.h"
#include "train/safetensors.h"

namespace megafold::train {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

// For every parameter p with a gradient g (one without is left as it is, moments included):
//   m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2,   t <- t + 1
//   p <- p - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
// with g already scaled by min(1, clip_norm / |all g|). One fused pass of PyTorch's over parameter,
// gradient and moments, on whatever device holds them.
class Adam {
 public:
  // The parameters must be float32 and stay where they are.
  Adam(NamedParameters parameters, const OptimizerConfig& config);

  // The global L2 norm of all gradients, a scalar on the parameters' device; 0 without any.
  at::Tensor GradientNorm() const;

  // One update. `gradient_norm` is GradientNorm()'s. Where `found_bad` (a float32 scalar on the
  // device) is not 0, nothing changes.
  void Step(double rate, const at::Tensor& gradient_norm, const at::Tensor& found_bad);

  void ClearGradients();

  // The name of the first parameter whose gradient has a NaN or infinity, "" if none has.
  std::string FirstBadGradient() const;

  // "exp_avg.<name>", "exp_avg_sq.<name>", "step.<name>" for each parameter. These are the moments
  // themselves, not copies.
  NamedTensors State() const;

 private:
  NamedParameters parameters_;
  std::vector<at::Tensor> exp_avg_;
  std::vector<at::Tensor> exp_avg_sq_;
  std::vector<at::Tensor> steps_;
  OptimizerConfig config_;
};

}  // namespace megafold::train
