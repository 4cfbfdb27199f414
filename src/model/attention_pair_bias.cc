#include "megafold/core/error.h"
#include "model/layers.h"

namespace megafold::model {

AttentionPairBiasImpl::AttentionPairBiasImpl(Ops ops, const AttentionPairBiasOptions& options)
    : ops_(ops), options_(options) {
  const std::int64_t c_a = options.c_a;
  Require(options.heads > 0 && c_a % options.heads == 0,
          "attention with pair bias: ", options.heads, " heads do not divide the width ", c_a);
  if (options.c_s > 0) {
    adaptive_norm_a_ = register_module("adaptive_norm_a", AdaptiveLayerNorm(ops, c_a, options.c_s));
    // The gate starts nearly closed.
    linear_s_ = register_module(
        "linear_s", Linear(options.c_s, c_a,
                           LinearOptions{.init = Init::kGating, .bias = true, .bias_value = -2}));
  } else {
    norm_a_ = register_module("norm_a", LayerNorm(c_a));
  }
  const LinearOptions projection{.init = Init::kGlorot};
  norm_z_ = register_module("norm_z", LayerNorm(options.c_z));
  linear_z_ = register_module("linear_z", Linear(options.c_z, options.heads));
  linear_q_ = register_module("linear_q",
                              Linear(c_a, c_a, LinearOptions{.init = Init::kGlorot, .bias = true}));
  linear_k_ = register_module("linear_k", Linear(c_a, c_a, projection));
  linear_v_ = register_module("linear_v", Linear(c_a, c_a, projection));
  linear_g_ = register_module("linear_g", Linear(c_a, c_a, LinearOptions{.init = Init::kGating}));
  // With a closed gate the block is the identity already, and a zero weight here would stop its
  // gradient.
  linear_out_ = register_module(
      "linear_out",
      Linear(c_a, c_a, LinearOptions{.init = options.c_s > 0 ? Init::kLecun : Init::kFinal}));
}

at::Tensor AttentionPairBiasImpl::forward(const at::Tensor& a, const at::Tensor& s,
                                          const at::Tensor& z, const at::Tensor& mask) {
  const Parts parts = Project(a, s);
  const at::Tensor keys =
      mask.defined() ? mask.view({mask.size(0), 1, 1, 1, mask.size(1)}) : at::Tensor();
  return Finish(Attention(ops_, parts.q, parts.k, parts.v, keys, PairBias(z)), parts.gate, s);
}

AttentionPairBiasImpl::Parts AttentionPairBiasImpl::Project(const at::Tensor& a,
                                                            const at::Tensor& s) {
  const at::Tensor weight =
      at::cat({linear_q_->weight, linear_k_->weight, linear_v_->weight, linear_g_->weight});
  const std::int64_t c_a = options_.c_a;
  const at::Tensor bias =
      at::constant_pad_nd(linear_q_->bias, {0, 3 * c_a});  // queries alone have one
  const at::Tensor projected = options_.c_s > 0 ? at::linear(adaptive_norm_a_(a, s), weight, bias)
                                                : NormThenLinear(ops_, norm_a_, a, weight, bias);
  const auto parts = projected.split(c_a, -1);
  const std::vector<std::int64_t> heads{options_.heads, c_a / options_.heads};
  return {.q = parts[0].unflatten(-1, heads),
          .k = parts[1].unflatten(-1, heads),
          .v = parts[2].unflatten(-1, heads),
          .gate = parts[3]};
}

at::Tensor AttentionPairBiasImpl::PairBias(const at::Tensor& z) {
  // Contiguous in the keys: an attention kernel reads it once per row and sample.
  return NormThenLinear(ops_, norm_z_, z, linear_z_->weight)
      .permute({0, 3, 1, 2})
      .unsqueeze(1)
      .contiguous();
}

at::Tensor AttentionPairBiasImpl::Finish(const at::Tensor& attended, const at::Tensor& gate,
                                         const at::Tensor& s) {
  const at::Tensor out = linear_out_(at::sigmoid(gate) * attended.flatten(3));
  return options_.c_s > 0 ? at::sigmoid(linear_s_(s)) * out : out;
}

}  // namespace megafold::model
