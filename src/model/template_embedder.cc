#include "model/template_embedder.h"

#include <torch/nn/modules/container/modulelist.h>

#include <limits>

#include "model/checkpoint.h"
#include "model/encodings.h"

namespace megafold::model {

namespace {

constexpr std::int64_t kDistanceBins =
    39;  // starting at 3.25, 4.5, ... 50.75 Angstrom; the last is open
constexpr double kFirstBin = 3.25;
constexpr double kLastBin = 50.75;
constexpr std::int64_t kTemplateFeatures = kDistanceBins + 1 + 3 + 1 + 2 * kResidueClasses;
constexpr double kUnitVectorEps = 1e-6;

at::Tensor Normalised(const at::Tensor& v) {
  return v * at::rsqrt(v.square().sum(-1, true) + kUnitVectorEps);
}

// [B, T, N, N, 39]
at::Tensor Distogram(const at::Tensor& points) {
  const at::Tensor squared = SquaredDistances(points).unsqueeze(-1);
  const at::Tensor lower =
      at::linspace(kFirstBin, kLastBin, kDistanceBins, points.options()).square();
  at::Tensor upper = lower.roll(-1);
  upper[-1] = std::numeric_limits<float>::infinity();
  return squared.gt(lower).logical_and(squared.le(upper)).to(at::kFloat);
}

// The direction of token j's CA in the backbone frame of token i. backbone [B, T, N, 3 (N, CA, C),
// 3] -> [B, T, N, N, 3].
at::Tensor UnitVectors(const at::Tensor& backbone) {
  const at::Tensor origin = backbone.select(-2, 1);
  const at::Tensor e1 = Normalised(backbone.select(-2, 2) - origin);
  const at::Tensor to_n = backbone.select(-2, 0) - origin;
  const at::Tensor e2 = Normalised(to_n - e1 * (e1 * to_n).sum(-1, true));
  const at::Tensor axes = at::stack({e1, e2, at::linalg_cross(e1, e2)}, -1);  // [B, T, N, 3, 3]
  const at::Tensor offsets =
      origin.unsqueeze(-3) - origin.unsqueeze(-2);  // [.., i, j, :] = CA_j - CA_i
  return Normalised(at::matmul(offsets, axes));
}

// [B, T] bool
at::Tensor Present(const Features& features) {
  return Get(features, "template_pseudo_beta_mask")
      .to(at::kBool)
      .logical_or(Get(features, "template_backbone_mask").to(at::kBool))
      .any(-1);
}

}  // namespace

at::Tensor TemplateFeatures(const Features& features) {
  const at::Tensor same_chain = SameOnBoth(Get(features, "asym_id")).unsqueeze(1);  // [B, 1, N, N]
  const auto pairs = [&](const char* name) {
    return PairMask(Get(features, name).to(at::kBool)).logical_and(same_chain).unsqueeze(-1);
  };
  const at::Tensor beta_mask = pairs("template_pseudo_beta_mask");
  const at::Tensor frame_mask = pairs("template_backbone_mask");
  const at::Tensor restype = OneHot(Get(features, "template_restype"), kResidueClasses);
  const std::int64_t tokens = restype.size(2);
  const at::Tensor of_i = restype.unsqueeze(3).expand({-1, -1, -1, tokens, -1});
  const at::Tensor of_j = restype.unsqueeze(2).expand({-1, -1, tokens, -1, -1});
  return at::cat(
      {Distogram(Get(features, "template_pseudo_beta")) * beta_mask, frame_mask.to(at::kFloat),
       UnitVectors(Get(features, "template_backbone")) * frame_mask, beta_mask.to(at::kFloat), of_i,
       of_j},
      -1);
}

TemplateEmbedderImpl::TemplateEmbedderImpl(const ModelConfig& config)
    : checkpointing_(config.checkpointing), config_(config.templates) {
  const std::int64_t width = config_.channels;
  z_ = register_module("z", LayerNormLinear(config.ops, config.c_z, width));
  linear_a_ = register_module("linear_a", Linear(kTemplateFeatures, width));
  norm_v_ = register_module("norm_v", LayerNorm(width));
  linear_out_ =
      register_module("linear_out", Linear(width, config.c_z, LinearOptions{.init = Init::kHe}));
  torch::nn::ModuleList list;
  for (int i = 0; i < config_.blocks; ++i) {
    blocks_.emplace_back(config.ops, PairStackOptions{.width = width,
                                                      .heads = config_.heads,
                                                      .expansion = config_.transition_expansion});
    list->push_back(blocks_.back());
  }
  register_module("blocks", list);
}

at::Tensor TemplateEmbedderImpl::forward(const Features& features, const at::Tensor& z,
                                         const at::Tensor& pair_mask,
                                         const at::Generator& generator) {
  const std::int64_t templates = Get(features, "template_restype").size(1);
  if (templates == 0) return at::zeros_like(z);
  at::Tensor v = z_(z).unsqueeze(1) + linear_a_(TemplateFeatures(features));
  const auto shape = v.sizes().vec();  // [B, T, N, N, channels]
  v = v.flatten(0, 1);
  const at::Tensor mask = pair_mask.repeat_interleave(templates, 0);
  for (PairStack& block : blocks_) {
    const PairDropout dropout = DrawPairDropout(v, config_.dropout, generator);
    v = Checkpoint(
            checkpointing_,
            [block, mask, dropout](const Tensors& inputs) mutable {
              return Tensors{block->forward(inputs[0], mask, dropout)};
            },
            {v}, block->parameters())
            .front();
  }
  const at::Tensor present = Present(features).to(at::kFloat);  // [B, T]
  const at::Tensor weights = present / present.sum(1, true).clamp_min(1);
  const at::Tensor mean =
      (norm_v_(v).view(shape) * weights.view({shape[0], templates, 1, 1, 1})).sum(1);
  return linear_out_(at::relu(mean));
}

}  // namespace megafold::model
