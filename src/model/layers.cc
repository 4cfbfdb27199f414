#include "model/layers.h"

#include <cmath>
#include <optional>

#include "torch_ops/composed.h"
#include "torch_ops/ops.h"

namespace megafold::model {

namespace {

std::optional<at::Tensor> Optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

at::Tensor PlainAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& mask, const at::Tensor& bias) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(-1)));
  // [B, S, H, N, D]
  const at::Tensor queries = (q * scale).transpose(2, 3);
  at::Tensor logits = at::matmul(queries, k.permute({0, 1, 3, 4, 2}));
  if (bias.defined()) logits = logits + bias;
  if (mask.defined()) {
    logits = logits.masked_fill(mask.logical_not(), kMasked);
  }
  const at::Tensor weights = at::softmax(logits, -1, at::kFloat).to(v.scalar_type());
  return at::matmul(weights, v.transpose(2, 3)).transpose(2, 3);
}

}  // namespace

at::Tensor Attention(Ops ops, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& mask, const at::Tensor& bias) {
  if (ops == Ops::kBaseline) return PlainAttention(q, k, v, mask, bias);
  return torch_ops::EvoAttention(q, k, v, Optional(mask), Optional(bias));
}

at::Tensor NormThenLinear(Ops ops, LayerNorm norm, const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& bias) {
  const auto compute =
      ops == Ops::kBaseline ? &torch_ops::composed::LayerNormLinear : &torch_ops::LayerNormLinear;
  return compute(x, Optional(norm->weight), Optional(norm->bias), weight, Optional(bias),
                 kLayerNormEps);
}

at::Tensor DropoutMask(at::IntArrayRef shape, double p, const at::Generator& generator,
                       const at::TensorOptions& options) {
  if (!generator.defined() || p == 0) return {};
  const at::NoGradGuard no_grad;
  return at::empty(shape, options).bernoulli_(1 - p, generator).div_(1 - p);
}

at::Tensor AddDropped(const at::Tensor& x, const at::Tensor& update, const at::Tensor& mask) {
  if (!mask.defined()) return x + update;
  return at::addcmul(x, mask.to(update.scalar_type()), update);
}

LayerNormLinearImpl::LayerNormLinearImpl(Ops ops, std::int64_t in, std::int64_t out,
                                         const LinearOptions& options)
    : ops_(ops) {
  norm_ = register_module("norm", LayerNorm(in));
  linear_ = register_module("linear", Linear(in, out, options));
}

at::Tensor LayerNormLinearImpl::forward(const at::Tensor& x) {
  return NormThenLinear(ops_, norm_, x, linear_->weight, linear_->bias);
}

TransitionImpl::TransitionImpl(Ops ops, std::int64_t width, std::int64_t expansion) : ops_(ops) {
  norm_ = register_module("norm", LayerNorm(width));
  linear_a_ = register_module("linear_a",
                              Linear(width, expansion * width, LinearOptions{.init = Init::kHe}));
  linear_b_ = register_module("linear_b", Linear(width, expansion * width));
  linear_out_ = register_module(
      "linear_out", Linear(expansion * width, width, LinearOptions{.init = Init::kFinal}));
}

at::Tensor TransitionImpl::forward(const at::Tensor& x) {
  const auto compute =
      ops_ == Ops::kBaseline ? &torch_ops::composed::Transition : &torch_ops::Transition;
  return compute(x, norm_->weight, norm_->bias, linear_a_->weight, linear_b_->weight,
                 linear_out_->weight, kLayerNormEps);
}

AdaptiveLayerNormImpl::AdaptiveLayerNormImpl(Ops ops, std::int64_t c_a, std::int64_t c_s)
    : ops_(ops), c_a_(c_a) {
  norm_a_ =
      register_module("norm_a", LayerNorm(c_a, LayerNormOptions{.scale = false, .offset = false}));
  norm_s_ = register_module("norm_s", LayerNorm(c_s, LayerNormOptions{.offset = false}));
  linear_gamma_ = register_module(
      "linear_gamma",
      Linear(c_s, c_a, LinearOptions{.init = Init::kGating, .bias = true, .bias_value = 1}));
  linear_beta_ =
      register_module("linear_beta", Linear(c_s, c_a, LinearOptions{.init = Init::kFinal}));
}

at::Tensor AdaptiveLayerNormImpl::forward(const at::Tensor& a, const at::Tensor& s) {
  const at::Tensor weight = at::cat({linear_gamma_->weight, linear_beta_->weight});
  const at::Tensor bias = at::cat({linear_gamma_->bias, at::zeros_like(linear_gamma_->bias)});
  const auto parts = NormThenLinear(ops_, norm_s_, s, weight, bias).split(c_a_, -1);
  return at::addcmul(parts[1], at::sigmoid(parts[0]), norm_a_(a).to(parts[1].scalar_type()));
}

}  // namespace megafold::model
