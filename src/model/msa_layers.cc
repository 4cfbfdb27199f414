// The layers of the MSA module.
#include "model/layers.h"

namespace megafold::model {

namespace {

// Keeps a pair of tokens that share no alignment row finite.
constexpr double kOuterProductEps = 1e-3;

}  // namespace

OuterProductMeanImpl::OuterProductMeanImpl(Ops ops, std::int64_t c_m, std::int64_t c_z,
                                           std::int64_t hidden)
    : ops_(ops), hidden_(hidden) {
  norm_ = register_module("norm", LayerNorm(c_m));
  linear_a_ = register_module("linear_a", Linear(c_m, hidden));
  linear_b_ = register_module("linear_b", Linear(c_m, hidden));
  linear_out_ = register_module(
      "linear_out",
      Linear(hidden * hidden, c_z, LinearOptions{.init = Init::kFinal, .bias = true}));
}

at::Tensor OuterProductMeanImpl::forward(const at::Tensor& m, const at::Tensor& mask) {
  const std::int64_t batch = m.size(0);
  const std::int64_t rows = m.size(1);
  const std::int64_t tokens = m.size(2);
  const at::Tensor weight = at::cat({linear_a_->weight, linear_b_->weight});
  const at::Tensor projected = NormThenLinear(ops_, norm_, m, weight);
  const auto parts = (projected * mask.unsqueeze(-1)).split(hidden_, -1);
  // [B, N * hidden, S] x [B, S, N * hidden]: the outer products of all token pairs, summed over the
  // rows
  const at::Tensor a = parts[0].reshape({batch, rows, tokens * hidden_});
  const at::Tensor b = parts[1].reshape({batch, rows, tokens * hidden_});
  const at::Tensor outer = at::matmul(a.transpose(1, 2), b)
                               .view({batch, tokens, hidden_, tokens, hidden_})
                               .permute({0, 1, 3, 2, 4})
                               .reshape({batch, tokens, tokens, hidden_ * hidden_});
  const at::Tensor present = mask.to(at::kFloat);
  const at::Tensor shared = at::matmul(present.transpose(1, 2), present).add(kOuterProductEps);
  return linear_out_(outer) / shared.unsqueeze(-1).to(outer.scalar_type());
}

MsaPairWeightedAveragingImpl::MsaPairWeightedAveragingImpl(Ops ops, std::int64_t c_m,
                                                           std::int64_t c_z, std::int64_t heads,
                                                           std::int64_t head_width)
    : ops_(ops), heads_(heads), head_width_(head_width) {
  const std::int64_t width = heads * head_width;
  norm_m_ = register_module("norm_m", LayerNorm(c_m));
  norm_z_ = register_module("norm_z", LayerNorm(c_z));
  linear_v_ = register_module("linear_v", Linear(c_m, width, LinearOptions{.init = Init::kGlorot}));
  linear_z_ = register_module("linear_z", Linear(c_z, heads));
  linear_g_ = register_module("linear_g", Linear(c_m, width, LinearOptions{.init = Init::kGating}));
  linear_out_ =
      register_module("linear_out", Linear(width, c_m, LinearOptions{.init = Init::kFinal}));
}

at::Tensor MsaPairWeightedAveragingImpl::forward(const at::Tensor& m, const at::Tensor& z,
                                                 const at::Tensor& mask) {
  const std::int64_t batch = m.size(0);
  const std::int64_t rows = m.size(1);
  const std::int64_t tokens = m.size(2);
  const at::Tensor weight = at::cat({linear_v_->weight, linear_g_->weight});
  const auto parts = NormThenLinear(ops_, norm_m_, m, weight).split(heads_ * head_width_, -1);
  const at::Tensor logits = NormThenLinear(ops_, norm_z_, z, linear_z_->weight)
                                .masked_fill(mask.logical_not().unsqueeze(-1), kMasked);
  const at::Tensor weights =
      at::softmax(logits, 2, at::kFloat).to(parts[0].scalar_type()).permute({0, 3, 1, 2});
  // [B, H, N, N] x [B, H, N, S * head_width]: all rows of the alignment share a head's weights
  const at::Tensor values = parts[0]
                                .unflatten(-1, {heads_, head_width_})
                                .permute({0, 3, 2, 1, 4})
                                .reshape({batch, heads_, tokens, rows * head_width_});
  const at::Tensor averaged = at::matmul(weights, values)
                                  .view({batch, heads_, tokens, rows, head_width_})
                                  .permute({0, 3, 2, 1, 4})
                                  .reshape({batch, rows, tokens, heads_ * head_width_});
  return linear_out_(at::sigmoid(parts[1]) * averaged);
}

}  // namespace megafold::model
