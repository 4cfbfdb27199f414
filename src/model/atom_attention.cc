#include "model/atom_attention.h"

#include "megafold/core/error.h"
#include "model/autocast.h"
#include "model/encodings.h"

namespace megafold::model {

namespace {

constexpr std::int64_t kElements = 128;
constexpr std::int64_t kNameCharacters = 4;
constexpr std::int64_t kNameAlphabet = 64;
// position, charge, mask, element, name
constexpr std::int64_t kAtomFeatures = 3 + 1 + 1 + kElements + kNameCharacters * kNameAlphabet;
// offset, 1 / (1 + distance^2), same conformer
constexpr std::int64_t kPairFeatures = 3 + 1 + 1;

}  // namespace

AtomTransformerImpl::AtomTransformerImpl(const ModelConfig& config) {
  const DiffusionTransformerOptions options{.c_a = config.atom.c_atom,
                                            .c_s = config.atom.c_atom,
                                            .c_z = config.atom.c_atompair,
                                            .heads = config.atom.heads,
                                            .blocks = config.atom.blocks,
                                            .expansion = config.atom.transition_expansion,
                                            .checkpointing = config.checkpointing};
  transformer_ = register_module("transformer", DiffusionTransformer(config.ops, options));
}

at::Tensor AtomTransformerImpl::forward(const at::Tensor& q, const AtomContext& context,
                                        const AtomLayout& layout) {
  return transformer_->ForwardWindows(q, context.c, context.p, layout);
}

AtomAttentionEncoderImpl::AtomAttentionEncoderImpl(const ModelConfig& config, std::int64_t c_token,
                                                   bool noised)
    : noised_(noised) {
  const std::int64_t c_atom = config.atom.c_atom;
  const std::int64_t c_pair = config.atom.c_atompair;
  const LinearOptions relu{.init = Init::kHe};
  const LinearOptions final{.init = Init::kFinal};
  linear_features_ = register_module("linear_features", Linear(kAtomFeatures, c_atom));
  linear_pairs_ = register_module("linear_pairs", Linear(kPairFeatures, c_pair));
  if (noised) {
    trunk_single_ =
        register_module("trunk_single", LayerNormLinear(config.ops, config.c_s, c_atom, final));
    trunk_pair_ =
        register_module("trunk_pair", LayerNormLinear(config.ops, config.c_z, c_pair, final));
    linear_r_ = register_module("linear_r", Linear(3, c_atom));
  }
  linear_query_ = register_module("linear_query", Linear(c_atom, c_pair));
  linear_key_ = register_module("linear_key", Linear(c_atom, c_pair));
  linear_p1_ = register_module("linear_p1", Linear(c_pair, c_pair, relu));
  linear_p2_ = register_module("linear_p2", Linear(c_pair, c_pair, relu));
  linear_p3_ = register_module("linear_p3", Linear(c_pair, c_pair, final));
  transformer_ = register_module("transformer", AtomTransformer(config));
  linear_tokens_ = register_module("linear_tokens", Linear(c_atom, c_token, relu));
}

at::Tensor AtomAttentionEncoderImpl::AtomFeatures(const Features& features,
                                                  const AtomLayout& layout) {
  const auto column = [&](const char* name) {
    return layout.Pad(Get(features, name)).to(at::kFloat).unsqueeze(-1);
  };
  const at::Tensor element = layout.Pad(Get(features, "ref_element"));
  const at::Tensor name = layout.Pad(Get(features, "ref_atom_name_chars"));
  // asinh keeps the sign of a charge and bounds what a metal's large one does.
  return at::cat(
      {layout.Pad(Get(features, "ref_pos")), column("ref_charge").asinh(), column("ref_mask"),
       OneHot(element, kElements), OneHot(name, kNameAlphabet).flatten(2)},
      -1);
}

at::Tensor AtomAttentionEncoderImpl::PairFeatures(const Features& features,
                                                  const AtomLayout& layout) {
  const std::vector<std::int64_t> windows{layout.batch(), layout.windows()};
  const auto queries = [&](const at::Tensor& x) {  // [B, W, queries, 1, ...] of x [B, A', ...]
    return layout.Queries(x.unsqueeze(1)).squeeze(1).unflatten(0, windows).unsqueeze(3);
  };
  const auto keys = [&](const at::Tensor& x) {  // [B, W, 1, keys, ...]
    return layout.Keys(x.unsqueeze(1)).squeeze(1).unflatten(0, windows).unsqueeze(2);
  };
  const at::Tensor position = layout.Pad(Get(features, "ref_pos"));
  const at::Tensor uid = layout.Pad(Get(features, "ref_space_uid"));
  const at::Tensor exists = layout.mask();
  const at::Tensor offset = queries(position) - keys(position);
  const at::Tensor inverse = (offset.square().sum(-1, /*keepdim=*/true) + 1).reciprocal();
  const at::Tensor same =
      (queries(uid).eq(keys(uid)) & queries(exists) & keys(exists)).unsqueeze(-1).to(at::kFloat);
  return at::cat({offset * same, inverse * same, same}, -1);
}

AtomContext AtomAttentionEncoderImpl::Prepare(const Features& features, const AtomLayout& layout,
                                              const at::Tensor& s_trunk, const at::Tensor& z) {
  Require(s_trunk.defined() == noised_ && z.defined() == noised_,
          "the atom encoder takes the trunk's representations exactly when it is the diffusion "
          "module's");
  at::Tensor c, p;
  {
    const NoAutocast float32;  // reference coordinates need more than bfloat16's 8 bits
    c = linear_features_(AtomFeatures(features, layout)).unsqueeze(1);
    p = linear_pairs_(PairFeatures(features, layout));
  }
  if (noised_) {
    c = c + layout.TokensToAtoms(trunk_single_(s_trunk).unsqueeze(1));
    p = p + layout.TokenPairsToWindows(trunk_pair_(z));
  }
  const at::Tensor active = at::relu(c);
  const std::vector<std::int64_t> windows{layout.batch(), layout.windows()};
  p = p + layout.Queries(linear_query_(active)).squeeze(1).unflatten(0, windows).unsqueeze(3) +
      layout.Keys(linear_key_(active)).squeeze(1).unflatten(0, windows).unsqueeze(2);
  const at::Tensor hidden = linear_p2_(at::relu(linear_p1_(at::relu(p))));
  return {.c = c, .p = p + linear_p3_(at::relu(hidden))};
}

AtomEncoding AtomAttentionEncoderImpl::forward(const AtomContext& context, const AtomLayout& layout,
                                               const at::Tensor& r) {
  Require(r.defined() == noised_,
          "the atom encoder takes noised positions exactly when it is the diffusion module's");
  at::Tensor q = context.c;
  if (noised_) {
    const NoAutocast float32;
    const at::Tensor positions = layout.Pad(r.transpose(1, 2)).transpose(1, 2);
    q = q + linear_r_(positions);
  }
  q = transformer_(q, context, layout);
  return {.tokens = layout.MeanOverAtoms(at::relu(linear_tokens_(q))), .q = q};
}

AtomAttentionDecoderImpl::AtomAttentionDecoderImpl(const ModelConfig& config,
                                                   std::int64_t c_token) {
  linear_tokens_ = register_module("linear_tokens", Linear(c_token, config.atom.c_atom));
  transformer_ = register_module("transformer", AtomTransformer(config));
  // An offset would move all atoms alike, which no loss sees.
  norm_ = register_module("norm", LayerNorm(config.atom.c_atom, LayerNormOptions{.offset = false}));
  linear_out_ = register_module("linear_out",
                                Linear(config.atom.c_atom, 3, LinearOptions{.init = Init::kFinal}));
}

at::Tensor AtomAttentionDecoderImpl::forward(const at::Tensor& tokens, const at::Tensor& q_skip,
                                             const AtomContext& context, const AtomLayout& layout) {
  const at::Tensor q =
      transformer_(layout.TokensToAtoms(linear_tokens_(tokens)) + q_skip, context, layout);
  const NoAutocast float32;  // positions
  return linear_out_(norm_(q.to(at::kFloat))).narrow(2, 0, layout.atoms());
}

}  // namespace megafold::model
