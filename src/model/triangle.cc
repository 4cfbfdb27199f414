// Triangle multiplication and triangle attention.
#include "megafold/core/error.h"
#include "model/layers.h"
#include "torch_ops/composed.h"
#include "torch_ops/ops.h"

namespace megafold::model {

TriangleMultiplicationImpl::TriangleMultiplicationImpl(Ops ops, std::int64_t c_z,
                                                       std::int64_t hidden, bool outgoing)
    : ops_(ops), outgoing_(outgoing) {
  const LinearOptions gating{.init = Init::kGating};
  norm_in_ = register_module("norm_in", LayerNorm(c_z));
  norm_out_ = register_module("norm_out", LayerNorm(hidden));
  linear_a_p_ = register_module("linear_a_p", Linear(c_z, hidden));
  linear_a_g_ = register_module("linear_a_g", Linear(c_z, hidden, gating));
  linear_b_p_ = register_module("linear_b_p", Linear(c_z, hidden));
  linear_b_g_ = register_module("linear_b_g", Linear(c_z, hidden, gating));
  linear_z_ = register_module("linear_z", Linear(hidden, c_z, LinearOptions{.init = Init::kFinal}));
  linear_g_ = register_module("linear_g", Linear(c_z, c_z, gating));
}

at::Tensor TriangleMultiplicationImpl::forward(const at::Tensor& z, const at::Tensor& mask) {
  const auto compute = ops_ == Ops::kBaseline ? &torch_ops::composed::TriangleMultiplication
                                              : &torch_ops::TriangleMultiplication;
  return compute(z, mask, outgoing_, norm_in_->weight, norm_in_->bias, linear_a_p_->weight,
                 linear_a_g_->weight, linear_b_p_->weight, linear_b_g_->weight, norm_out_->weight,
                 norm_out_->bias, linear_z_->weight, linear_g_->weight, kLayerNormEps);
}

TriangleAttentionImpl::TriangleAttentionImpl(Ops ops, std::int64_t c_z, std::int64_t heads,
                                             TriangleNode node)
    : ops_(ops), heads_(heads), node_(node) {
  Require(c_z % heads == 0, "triangle attention: ", heads, " heads do not divide the width ", c_z);
  const LinearOptions projection{.init = Init::kGlorot};
  norm_ = register_module("norm", LayerNorm(c_z));
  linear_q_ = register_module("linear_q", Linear(c_z, c_z, projection));
  linear_k_ = register_module("linear_k", Linear(c_z, c_z, projection));
  linear_v_ = register_module("linear_v", Linear(c_z, c_z, projection));
  linear_bias_ = register_module("linear_bias", Linear(c_z, heads));
  linear_g_ = register_module("linear_g", Linear(c_z, c_z, LinearOptions{.init = Init::kGating}));
  linear_out_ =
      register_module("linear_out", Linear(c_z, c_z, LinearOptions{.init = Init::kFinal}));
}

at::Tensor TriangleAttentionImpl::forward(const at::Tensor& z, const at::Tensor& mask) {
  const std::int64_t width = linear_q_->weight.size(0);
  const at::Tensor weight =
      at::cat({linear_q_->weight, linear_k_->weight, linear_v_->weight, linear_g_->weight});
  const auto parts = NormThenLinear(ops_, norm_, z, weight).split(width, -1);
  at::Tensor bias = NormThenLinear(ops_, norm_, z, linear_bias_->weight);  // [B, N, N, H]

  // Around the ending node, rows and columns change places: of views, not of data.
  const bool ending = node_ == TriangleNode::kEnding;
  const auto rows_first = [&](const at::Tensor& x) { return ending ? x.transpose(1, 2) : x; };
  const auto heads_of = [&](const at::Tensor& x) {
    return rows_first(x).unflatten(-1, {heads_, width / heads_});
  };
  bias = rows_first(bias).permute({0, 3, 1, 2}).unsqueeze(1).contiguous();  // [B, 1, H, N, N]
  const at::Tensor keys = rows_first(mask).unsqueeze(2).unsqueeze(2);       // [B, N, 1, 1, N]
  const at::Tensor attended =
      Attention(ops_, heads_of(parts[0]), heads_of(parts[1]), heads_of(parts[2]), keys, bias);
  return linear_out_(at::sigmoid(parts[3]) * rows_first(attended.flatten(3)));
}

}  // namespace megafold::model
