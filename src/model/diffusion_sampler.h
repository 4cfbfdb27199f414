// Training's noised copies of a structure, and sampling of structures from noise (Algorithm 18).
// Everything random follows from the seed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/diffusion_loss.h"
#include "model/diffusion_module.h"

namespace megafold::model {

// One training step of the diffusion module: diffusion.samples copies of each structure, each
// rotated and translated at random and noised at a level of its own, sigma = sigma_data exp(p_mean
// + p_std normal); denoised; judged.
DiffusionLosses DiffusionTrainingLoss(DiffusionModule& module, const Features& features,
                                      const AtomLayout& layout, const TrunkOutput& trunk,
                                      const ModelConfig& config, std::uint64_t seed);

// The noise levels of sampling, steps + 1 of them, falling: sigma_data (max^(1/rho) + i/steps
// (min^(1/rho) - max^(1/rho)))^rho.
std::vector<double> NoiseSchedule(const DiffusionConfig& config, int steps);

// `samples` structures per entry: [B, samples, A, 3] float32, zeros for padding. No gradient.
at::Tensor SampleStructures(DiffusionModule& module, const Features& features,
                            const AtomLayout& layout, const TrunkOutput& trunk,
                            const ModelConfig& config, std::uint64_t seed, int steps,
                            std::int64_t samples = 1);

}  // namespace megafold::model
