#include "model/diffusion_conditioning.h"

#include <numbers>
#include <string>

#include "model/autocast.h"
#include "model/random.h"

namespace megafold::model {

FourierEmbeddingImpl::FourierEmbeddingImpl(std::int64_t channels, std::uint64_t seed) {
  at::Generator generator = MakeGenerator(at::kCPU, DeriveSeed(seed, "fourier_embedding"));
  frequency_ = register_buffer("frequency", at::randn({channels}, generator, at::kFloat));
  phase_ = register_buffer("phase", at::randn({channels}, generator, at::kFloat));
}

at::Tensor FourierEmbeddingImpl::forward(const at::Tensor& x) {
  return at::cos(2 * std::numbers::pi * (x.unsqueeze(-1) * frequency_ + phase_));
}

DiffusionConditioningImpl::DiffusionConditioningImpl(const ModelConfig& config)
    : sigma_data_(config.diffusion.sigma_data) {
  const std::int64_t c_s = config.c_s;
  const std::int64_t c_z = config.c_z;
  relative_position_ = register_module("relative_position", RelativePositionEncoding(config));
  project_z_ = register_module("project_z", LayerNormLinear(config.ops, 2 * c_z, c_z));
  project_s_ =
      register_module("project_s", LayerNormLinear(config.ops, c_s + config.c_s_inputs(), c_s));
  fourier_ = register_module("fourier",
                             FourierEmbedding(config.diffusion.fourier_channels, config.init_seed));
  project_noise_ = register_module(
      "project_noise", LayerNormLinear(config.ops, config.diffusion.fourier_channels, c_s));
  const std::int64_t expansion = config.diffusion.transition_expansion;
  for (int i = 0; i < config.diffusion.conditioning_transitions; ++i) {
    const std::string number = std::to_string(i);
    transitions_z_.push_back(
        register_module("transition_z_" + number, Transition(config.ops, c_z, expansion)));
    transitions_s_.push_back(
        register_module("transition_s_" + number, Transition(config.ops, c_s, expansion)));
  }
}

at::Tensor DiffusionConditioningImpl::Pair(const Features& features, const TrunkOutput& trunk) {
  at::Tensor z = project_z_(at::cat({trunk.z, relative_position_(features)}, -1));
  for (auto& transition : transitions_z_) z = z + transition(z);
  return z;
}

at::Tensor DiffusionConditioningImpl::Single(const TrunkOutput& trunk) {
  return project_s_(at::cat({trunk.s, trunk.s_inputs}, -1));
}

at::Tensor DiffusionConditioningImpl::AtNoiseLevel(const at::Tensor& single,
                                                   const at::Tensor& sigma) {
  at::Tensor embedded;
  {
    const NoAutocast float32;
    embedded = fourier_((sigma.to(at::kFloat) / sigma_data_).log() / 4);
  }
  at::Tensor s = single.unsqueeze(1) + project_noise_(embedded).unsqueeze(2);
  for (auto& transition : transitions_s_) s = s + transition(s);
  return s;
}

}  // namespace megafold::model
