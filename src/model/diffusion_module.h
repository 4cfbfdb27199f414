// DiffusionModule (Algorithm 20): the denoiser, in the preconditioning of EDM (Karras et al. 2022).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "model/atom_attention.h"
#include "model/diffusion_conditioning.h"
#include "model/diffusion_transformer.h"

namespace megafold::model {

// The factors at noise level sigma, each [B, S, 1, 1]:
//   denoised = skip * x + out * network(in * x)
struct EdmScaling {
  at::Tensor in;    // 1 / sqrt(sigma^2 + sigma_data^2)
  at::Tensor skip;  // sigma_data^2 / (sigma^2 + sigma_data^2)
  at::Tensor out;   // sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
};
EdmScaling ScalingAt(const at::Tensor& sigma /*[B, S]*/, double sigma_data);

// What does not depend on noise: made once for all samples of a training step and all steps of
// sampling.
struct DiffusionContext {
  at::Tensor single;  // [B, N, c_s]
  at::Tensor z;       // [B, N, N, c_z]
  AtomContext atom;
};

class DiffusionModuleImpl : public torch::nn::Module {
 public:
  explicit DiffusionModuleImpl(const ModelConfig& config);

  DiffusionContext Prepare(const Features& features, const AtomLayout& layout,
                           const TrunkOutput& trunk);
  // x [B, S, A, 3] at noise levels sigma [B, S], both in Angstrom -> denoised [B, S, A, 3] float32.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& sigma, const DiffusionContext& context,
                     const AtomLayout& layout);

 private:
  double sigma_data_;
  DiffusionConditioning conditioning_{nullptr};
  AtomAttentionEncoder encoder_{nullptr};
  LayerNormLinear project_s_{nullptr};
  DiffusionTransformer transformer_{nullptr};
  LayerNorm norm_{nullptr};
  AtomAttentionDecoder decoder_{nullptr};
};
TORCH_MODULE(DiffusionModule);

}  // namespace megafold::model
