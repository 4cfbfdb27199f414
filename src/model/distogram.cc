#include "model/distogram.h"

#include "megafold/core/error.h"
#include "model/encodings.h"

namespace megafold::model {

DistogramHeadImpl::DistogramHeadImpl(const ModelConfig& config) {
  linear_ = register_module("linear", Linear(config.c_z, config.distogram.bins,
                                             LinearOptions{.init = Init::kFinal, .bias = true}));
}

at::Tensor DistogramHeadImpl::forward(const at::Tensor& z) {
  const at::Tensor half = linear_(z).to(at::kFloat);
  return half + half.transpose(1, 2);
}

at::Tensor DistogramLoss(const at::Tensor& logits, const Features& features,
                         const DistogramConfig& config) {
  Require(config.max > config.min, "distogram.max is ", config.max,
          ", expected more than distogram.min, ", config.min);
  const at::Tensor atom = Get(features, "token_rep_atom").to(at::kLong);  // [B, N]
  const at::Tensor points =
      Get(features, "atom_positions").gather(1, atom.unsqueeze(-1).expand({-1, -1, 3}));
  const at::Tensor resolved =
      Get(features, "atom_resolved").to(at::kBool).gather(1, atom).logical_and(TokenMask(features));
  const double width = (config.max - config.min) / config.bins;
  const at::Tensor edges =
      at::linspace(config.min + width, config.max - width, config.bins - 1, points.options())
          .square();
  const at::Tensor bin = SquaredDistances(points).unsqueeze(-1).gt(edges).sum(-1);  // [B, N, N]
  const at::Tensor error =
      at::logsumexp(logits, -1) - logits.gather(-1, bin.unsqueeze(-1)).squeeze(-1);
  const at::Tensor weight = PairMask(resolved).to(at::kFloat);
  return (error * weight).sum() / weight.sum().clamp_min(1);
}

}  // namespace megafold::model
