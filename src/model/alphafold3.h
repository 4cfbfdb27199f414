// AlphaFold 3's training path: trunk, diffusion module, distogram head and their losses. The
// confidence heads and their losses are not part of it yet.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/diffusion_module.h"
#include "model/distogram.h"
#include "model/features.h"
#include "model/trunk.h"

namespace megafold::model {

struct LossOutput {
  at::Tensor total;  // scalar, float32, differentiable
  // The parts by name, unweighted and detached: diffusion, mse, bond, smooth_lddt, distogram.
  std::vector<std::pair<std::string, at::Tensor>> terms;
};

class AlphaFold3Impl : public torch::nn::Module {
 public:
  // Weights as config.init_seed gives them. Errors: kInvalidArgument for widths that heads do not
  // divide.
  explicit AlphaFold3Impl(const ModelConfig& config);

  // loss.diffusion * diffusion + loss.distogram * distogram on one batch (docs/features.md) that
  // lies on the model's device. Where chains have copies, the truth's are first assigned by a short
  // sample (chain_permutation.h). Cycles, dropout (in training mode), noise and rotations follow
  // from the seed alone. In evaluation mode the trunk runs all its cycles. Errors: kInvalidArgument
  // for a missing feature.
  LossOutput Loss(const Features& features, std::uint64_t seed);

  // One structure per entry, [B, A, 3] float32 in Angstrom, zeros for padding; no gradient, no
  // dropout. `steps` denoising steps (the paper: 200).
  at::Tensor Sample(const Features& features, std::uint64_t seed, int steps);

 private:
  // `features` with the truth of equal chains assigned to fit a sample of permutation_steps.
  Features WithPermutedChains(const Features& features, const AtomLayout& layout,
                              const TrunkOutput& trunk, std::uint64_t seed);

  ModelConfig config_;
  Trunk trunk_{nullptr};
  DiffusionModule diffusion_module_{nullptr};
  DistogramHead distogram_head_{nullptr};
};
TORCH_MODULE(AlphaFold3);

}  // namespace megafold::model
