#include "model/alphafold3.h"

#include <ATen/autocast_mode.h>

#include "model/chain_permutation.h"
#include "model/diffusion_sampler.h"
#include "model/random.h"

namespace megafold::model {

AlphaFold3Impl::AlphaFold3Impl(const ModelConfig& config) : config_(config) {
  trunk_ = register_module("trunk", Trunk(config));
  diffusion_module_ = register_module("diffusion_module", DiffusionModule(config));
  distogram_head_ = register_module("distogram_head", DistogramHead(config));
  InitWeights(*this, config.init_seed);
}

LossOutput AlphaFold3Impl::Loss(const Features& features, std::uint64_t seed) {
  std::int64_t cycles = config_.recycling;
  at::Generator dropout;
  if (is_training()) {
    cycles = DrawInteger(DeriveSeed(seed, "cycles"), 1, config_.recycling);
    dropout = MakeGenerator(Get(features, "token_mask").device(), DeriveSeed(seed, "dropout"));
  }
  const AtomLayout layout(features, config_.atom);
  const TrunkOutput trunk = trunk_(features, layout, cycles, dropout);
  const Features truth = WithPermutedChains(features, layout, trunk, DeriveSeed(seed, "rollout"));
  const at::Tensor distogram = DistogramLoss(distogram_head_(trunk.z), truth, config_.distogram);
  const DiffusionLosses diffusion = DiffusionTrainingLoss(diffusion_module_, truth, layout, trunk,
                                                          config_, DeriveSeed(seed, "diffusion"));
  return {.total = config_.loss.diffusion * diffusion.total + config_.loss.distogram * distogram,
          .terms = {{"diffusion", diffusion.total.detach()},
                    {"mse", diffusion.mse},
                    {"bond", diffusion.bond},
                    {"smooth_lddt", diffusion.smooth_lddt},
                    {"distogram", distogram.detach()}}};
}

Features AlphaFold3Impl::WithPermutedChains(const Features& features, const AtomLayout& layout,
                                            const TrunkOutput& trunk, std::uint64_t seed) {
  if (config_.permutation_steps == 0 || !HasChainCopies(features)) return features;
  const at::Tensor predicted = SampleStructures(diffusion_module_, features, layout, trunk, config_,
                                                seed, config_.permutation_steps)
                                   .squeeze(1);
  // Autocast keeps the casts it made of the weights, here without a graph; training needs one.
  at::autocast::clear_cache();
  return PermuteChains(features, predicted);
}

at::Tensor AlphaFold3Impl::Sample(const Features& features, std::uint64_t seed, int steps) {
  const at::NoGradGuard no_grad;
  const AtomLayout layout(features, config_.atom);
  const TrunkOutput trunk = trunk_(features, layout, config_.recycling, at::Generator());
  return SampleStructures(diffusion_module_, features, layout, trunk, config_,
                          DeriveSeed(seed, "sampling"), steps)
      .squeeze(1);
}

}  // namespace megafold::model
