// DiffusionConditioning (Algorithm 21): the trunk's representations and the noise level as the
// conditioning of the denoiser.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <vector>

#include "model/config.h"
#include "model/features.h"
#include "model/layers.h"
#include "model/relative_position.h"
#include "model/trunk_output.h"

namespace megafold::model {

// Algorithm 22: cos(2 pi (x w + b)) with fixed random w and b, drawn from `seed`.
class FourierEmbeddingImpl : public torch::nn::Module {
 public:
  FourierEmbeddingImpl(std::int64_t channels, std::uint64_t seed);
  at::Tensor forward(const at::Tensor& x);  // [...] -> [..., channels] float32

 private:
  at::Tensor frequency_, phase_;
};
TORCH_MODULE(FourierEmbedding);

class DiffusionConditioningImpl : public torch::nn::Module {
 public:
  explicit DiffusionConditioningImpl(const ModelConfig& config);

  // Lines 1 to 5, the same for every noise level: [B, N, N, c_z].
  at::Tensor Pair(const Features& features, const TrunkOutput& trunk);
  // Lines 6 and 7, the same for every noise level: [B, N, c_s].
  at::Tensor Single(const TrunkOutput& trunk);
  // Lines 8 to 12: single [B, N, c_s] at the noise levels sigma [B, S], in Angstrom -> [B, S, N,
  // c_s].
  at::Tensor AtNoiseLevel(const at::Tensor& single, const at::Tensor& sigma);

 private:
  double sigma_data_;
  RelativePositionEncoding relative_position_{nullptr};
  LayerNormLinear project_z_{nullptr}, project_s_{nullptr}, project_noise_{nullptr};
  FourierEmbedding fourier_{nullptr};
  std::vector<Transition> transitions_z_, transitions_s_;
};
TORCH_MODULE(DiffusionConditioning);

}  // namespace megafold::model
