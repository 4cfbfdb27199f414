#include "model/trunk.h"

#include <ATen/autocast_mode.h>

#include "megafold/core/error.h"
#include "model/encodings.h"

namespace megafold::model {

TrunkImpl::TrunkImpl(const ModelConfig& config) {
  const std::int64_t c_s = config.c_s;
  const std::int64_t c_z = config.c_z;
  const std::int64_t c_inputs = config.c_s_inputs();
  input_embedder_ = register_module("input_embedder", InputFeatureEmbedder(config));
  linear_s_ = register_module("linear_s", Linear(c_inputs, c_s));
  linear_z_i_ = register_module("linear_z_i", Linear(c_inputs, c_z));
  linear_z_j_ = register_module("linear_z_j", Linear(c_inputs, c_z));
  relative_position_ = register_module("relative_position", RelativePositionEncoding(config));
  linear_bonds_ = register_module("linear_bonds", Linear(1, c_z));
  const LinearOptions identity_at_first{.init = Init::kFinal};
  recycle_z_ =
      register_module("recycle_z", LayerNormLinear(config.ops, c_z, c_z, identity_at_first));
  recycle_s_ =
      register_module("recycle_s", LayerNormLinear(config.ops, c_s, c_s, identity_at_first));
  template_embedder_ = register_module("template_embedder", TemplateEmbedder(config));
  msa_module_ = register_module("msa_module", MsaModule(config));
  pairformer_ = register_module("pairformer", PairformerStack(config));
}

TrunkOutput TrunkImpl::forward(const Features& features, const AtomLayout& layout,
                               std::int64_t cycles, const at::Generator& dropout) {
  Require(cycles >= 1, "the trunk was asked for ", cycles, " cycles, expected at least 1");
  TrunkOutput initial;
  initial.s_inputs = input_embedder_(features, layout);
  initial.s = linear_s_(initial.s_inputs);
  initial.z = InitialPair(features, initial.s_inputs);
  at::Tensor s = at::zeros_like(initial.s);
  at::Tensor z = at::zeros_like(initial.z);
  if (cycles > 1) {
    const at::NoGradGuard no_grad;
    for (std::int64_t i = 1; i < cycles; ++i) Cycle(features, initial, s, z, dropout);
    // Autocast keeps the casts it made of the weights: these have no graph, and the last cycle
    // needs one.
    at::autocast::clear_cache();
  }
  Cycle(features, initial, s, z, dropout);
  return {.s_inputs = initial.s_inputs, .s = s, .z = z};
}

at::Tensor TrunkImpl::InitialPair(const Features& features, const at::Tensor& s_inputs) {
  const at::Tensor z = linear_z_i_(s_inputs).unsqueeze(2) + linear_z_j_(s_inputs).unsqueeze(1);
  const at::Tensor bonds = Get(features, "token_bonds").unsqueeze(-1).to(at::kFloat);
  return z + relative_position_(features) + linear_bonds_(bonds);
}

void TrunkImpl::Cycle(const Features& features, const TrunkOutput& initial, at::Tensor& s,
                      at::Tensor& z, const at::Generator& dropout) {
  const at::Tensor token_mask = TokenMask(features);
  const at::Tensor pair_mask = PairMask(token_mask);
  z = initial.z + recycle_z_(z);
  z = z + template_embedder_(features, z, pair_mask, dropout);
  z = msa_module_(features, initial.s_inputs, z, pair_mask, dropout);
  s = initial.s + recycle_s_(s);
  pairformer_->forward(s, z, token_mask, pair_mask, dropout);
}

}  // namespace megafold::model
