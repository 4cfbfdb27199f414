#include "model/diffusion_sampler.h"

#include <ATen/ATen.h>

#include <cmath>

#include "megafold/core/error.h"
#include "model/random.h"
#include "model/rigid.h"

namespace megafold::model {

DiffusionLosses DiffusionTrainingLoss(DiffusionModule& module, const Features& features,
                                      const AtomLayout& layout, const TrunkOutput& trunk,
                                      const ModelConfig& config, std::uint64_t seed) {
  const DiffusionConfig& diffusion = config.diffusion;
  const DiffusionTruth truth(features, config.loss);
  const std::int64_t batch = layout.batch(), samples = diffusion.samples;
  const auto options = truth.positions.options();
  at::Generator generator = MakeGenerator(truth.positions.device(), DeriveSeed(seed, "diffusion"));

  const at::Tensor level = at::randn({batch, samples}, generator, options);
  const at::Tensor sigma =
      diffusion.sigma_data * (diffusion.p_mean + diffusion.p_std * level).exp();
  const at::Tensor copies =
      truth.positions.unsqueeze(1).expand({batch, samples, layout.atoms(), 3});
  const at::Tensor moved =
      CentreRandomAugmentation(copies, truth.exists, diffusion.translation_sigma, generator);
  const at::Tensor noise = at::randn(moved.sizes(), generator, options);
  const at::Tensor noised = moved + sigma.view({batch, samples, 1, 1}) * noise;

  const DiffusionContext context = module->Prepare(features, layout, trunk);
  const at::Tensor denoised = module(noised, sigma, context, layout);
  return DiffusionLoss(denoised, sigma, diffusion.sigma_data, truth, config.loss);
}

std::vector<double> NoiseSchedule(const DiffusionConfig& config, int steps) {
  Require(steps >= 1, "sampling takes at least 1 step, got ", steps);
  const double high = std::pow(config.sigma_max, 1 / config.rho);
  const double low = std::pow(config.sigma_min, 1 / config.rho);
  std::vector<double> levels;
  for (int i = 0; i <= steps; ++i) {
    levels.push_back(config.sigma_data * std::pow(high + (low - high) * i / steps, config.rho));
  }
  return levels;
}

at::Tensor SampleStructures(DiffusionModule& module, const Features& features,
                            const AtomLayout& layout, const TrunkOutput& trunk,
                            const ModelConfig& config, std::uint64_t seed, int steps,
                            std::int64_t samples) {
  const at::NoGradGuard no_grad;
  const DiffusionConfig& diffusion = config.diffusion;
  const std::vector<double> levels = NoiseSchedule(diffusion, steps);
  const at::Tensor mask = Get(features, "atom_mask").to(at::kBool);
  const std::vector<std::int64_t> shape{layout.batch(), samples, layout.atoms(), 3};
  const auto options = mask.options().dtype(at::kFloat);
  at::Generator generator = MakeGenerator(mask.device(), DeriveSeed(seed, "sampling"));
  const DiffusionContext context = module->Prepare(features, layout, trunk);

  at::Tensor x = levels.front() * at::randn(shape, generator, options);
  for (int step = 1; step <= steps; ++step) {
    const double previous = levels[step - 1], next = levels[step];
    x = CentreRandomAugmentation(x, mask, diffusion.translation_sigma, generator);
    const double gamma = next > diffusion.gamma_min ? diffusion.gamma_0 : 0;
    const double level = previous * (gamma + 1);
    const double added = diffusion.noise_scale * std::sqrt(level * level - previous * previous);
    x = x + added * at::randn(shape, generator, options);
    const at::Tensor sigma = at::full({shape[0], samples}, level, options);
    const at::Tensor denoised = module(x, sigma, context, layout);
    x = x + diffusion.step_scale * (next - level) / level * (x - denoised);
  }
  return x * mask.to(at::kFloat).unsqueeze(1).unsqueeze(-1);
}

}  // namespace megafold::model
