#include "model/diffusion_module.h"

#include "megafold/core/error.h"
#include "megafold/core/tensor_view.h"
#include "model/autocast.h"

namespace megafold::model {

EdmScaling ScalingAt(const at::Tensor& sigma, double sigma_data) {
  const at::Tensor level = sigma.to(at::kFloat).unsqueeze(-1).unsqueeze(-1);
  // hypot: no overflow and no loss at either extreme.
  const at::Tensor total = at::hypot(level, at::full_like(level, sigma_data));
  const at::Tensor data = sigma_data / total;
  return {.in = total.reciprocal(), .skip = data.square(), .out = level * data};
}

DiffusionModuleImpl::DiffusionModuleImpl(const ModelConfig& config)
    : sigma_data_(config.diffusion.sigma_data) {
  const std::int64_t c_token = config.diffusion.c_token;
  conditioning_ = register_module("conditioning", DiffusionConditioning(config));
  encoder_ = register_module("encoder", AtomAttentionEncoder(config, c_token, /*noised=*/true));
  project_s_ = register_module("project_s", LayerNormLinear(config.ops, config.c_s, c_token,
                                                            LinearOptions{.init = Init::kFinal}));
  const DiffusionTransformerOptions options{.c_a = c_token,
                                            .c_s = config.c_s,
                                            .c_z = config.c_z,
                                            .heads = config.diffusion.heads,
                                            .blocks = config.diffusion.blocks,
                                            .expansion = config.diffusion.transition_expansion,
                                            .checkpointing = config.checkpointing};
  transformer_ = register_module("transformer", DiffusionTransformer(config.ops, options));
  norm_ = register_module("norm", LayerNorm(c_token));
  decoder_ = register_module("decoder", AtomAttentionDecoder(config, c_token));
}

DiffusionContext DiffusionModuleImpl::Prepare(const Features& features, const AtomLayout& layout,
                                              const TrunkOutput& trunk) {
  DiffusionContext context;
  context.single = conditioning_->Single(trunk);
  context.z = conditioning_->Pair(features, trunk);
  context.atom = encoder_->Prepare(features, layout, trunk.s, context.z);
  return context;
}

at::Tensor DiffusionModuleImpl::forward(const at::Tensor& x, const at::Tensor& sigma,
                                        const DiffusionContext& context, const AtomLayout& layout) {
  Require(x.dim() == 4 && x.size(2) == layout.atoms() && x.size(3) == 3 && sigma.dim() == 2 &&
              sigma.size(0) == x.size(0) && sigma.size(1) == x.size(1),
          "the denoiser takes positions [B, S, ", layout.atoms(),
          ", 3] and noise levels [B, S], got ", ShapeString(x.sizes()), " and ",
          ShapeString(sigma.sizes()));
  const EdmScaling scaling = ScalingAt(sigma, sigma_data_);
  const at::Tensor s = conditioning_->AtNoiseLevel(context.single, sigma);
  const AtomEncoding encoding = encoder_(context.atom, layout, x * scaling.in);
  at::Tensor a = encoding.tokens + project_s_(s);
  a = norm_(transformer_(a, s, context.z, layout));
  const at::Tensor update = decoder_(a, encoding.q, context.atom, layout);
  return scaling.skip * x + scaling.out * update;
}

}  // namespace megafold::model
