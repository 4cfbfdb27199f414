#include "model/msa_module.h"

#include <torch/nn/modules/container/modulelist.h>

#include <cmath>
#include <numbers>

#include "model/checkpoint.h"
#include "model/encodings.h"

namespace megafold::model {

namespace {

constexpr double kDeletionScale = 3;

// [B, M, N, 34]: residue class, whether there are deletions to the left, how many (through an arc
// tangent).
at::Tensor MsaFeatures(const Features& features) {
  const at::Tensor deletions = Get(features, "msa_deletions").unsqueeze(-1).to(at::kFloat);
  return at::cat({OneHot(Get(features, "msa"), kResidueClasses), deletions.clamp(0, 1),
                  at::atan(deletions / kDeletionScale) * (2 / std::numbers::pi)},
                 -1);
}

}  // namespace

MsaBlockImpl::MsaBlockImpl(Ops ops, std::int64_t c_z, const MsaConfig& config,
                           std::int64_t pair_heads, bool last) {
  const std::int64_t expansion = config.transition_expansion;
  outer_product_mean_ = register_module(
      "outer_product_mean", OuterProductMean(ops, config.c_m, c_z, config.outer_product_hidden));
  if (!last) {
    averaging_ = register_module(
        "averaging",
        MsaPairWeightedAveraging(ops, config.c_m, c_z, config.heads, config.head_width));
    transition_ = register_module("transition", Transition(ops, config.c_m, expansion));
  }
  pair_stack_ = register_module(
      "pair_stack",
      PairStack(ops, PairStackOptions{.width = c_z, .heads = pair_heads, .expansion = expansion}));
}

void MsaBlockImpl::forward(at::Tensor& m, at::Tensor& z, const at::Tensor& msa_mask,
                           const at::Tensor& pair_mask, const at::Tensor& msa_dropout,
                           const PairDropout& pair_dropout) {
  z = z + outer_product_mean_(m, msa_mask);
  if (!averaging_.is_empty()) {
    m = AddDropped(m, averaging_(m, z, pair_mask), msa_dropout);
    m = m + transition_(m);
  }
  z = pair_stack_(z, pair_mask, pair_dropout);
}

MsaModuleImpl::MsaModuleImpl(const ModelConfig& config)
    : checkpointing_(config.checkpointing), config_(config.msa) {
  linear_m_ = register_module("linear_m", Linear(kResidueClasses + 2, config.msa.c_m));
  linear_s_ = register_module("linear_s", Linear(config.c_s_inputs(), config.msa.c_m));
  torch::nn::ModuleList list;
  for (int i = 0; i < config.msa.blocks; ++i) {
    blocks_.emplace_back(config.ops, config.c_z, config.msa, config.pairformer.pair_heads,
                         i + 1 == config.msa.blocks);
    list->push_back(blocks_.back());
  }
  register_module("blocks", list);
}

at::Tensor MsaModuleImpl::forward(const Features& features, const at::Tensor& s_inputs,
                                  at::Tensor z, const at::Tensor& pair_mask,
                                  const at::Generator& generator) {
  const at::Tensor msa_mask = Get(features, "msa_mask").to(at::kBool);
  at::Tensor m = linear_m_(MsaFeatures(features)) + linear_s_(s_inputs).unsqueeze(1);
  for (MsaBlock& block : blocks_) {
    const at::Tensor msa_dropout = DropoutMask({m.size(0), 1, m.size(2), m.size(3)},
                                               config_.msa_dropout, generator, m.options());
    const PairDropout pair_dropout = DrawPairDropout(z, config_.pair_dropout, generator);
    const Tensors updated = Checkpoint(
        checkpointing_,
        [block, msa_mask, pair_mask, msa_dropout, pair_dropout](const Tensors& inputs) mutable {
          at::Tensor rows = inputs[0];
          at::Tensor pair = inputs[1];
          block->forward(rows, pair, msa_mask, pair_mask, msa_dropout, pair_dropout);
          return Tensors{rows, pair};
        },
        {m, z}, block->parameters());
    m = updated[0];
    z = updated[1];
  }
  return z;
}

}  // namespace megafold::model
