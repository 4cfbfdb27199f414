// TemplateEmbedder (Algorithm 16).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <vector>

#include "model/config.h"
#include "model/features.h"
#include "model/layers.h"
#include "model/pairformer.h"

namespace megafold::model {

// [B, T, N, N, 108] float32: what a template says of a token pair. Geometry only within a chain.
at::Tensor TemplateFeatures(const Features& features);

class TemplateEmbedderImpl : public torch::nn::Module {
 public:
  explicit TemplateEmbedderImpl(const ModelConfig& config);
  // Reads asym_id and template_*; z [B, N, N, c_z] -> what to add to it. The mean is over the
  // templates with any coordinates: padding and the absence of templates (T = 0 too) add exactly 0.
  at::Tensor forward(const Features& features, const at::Tensor& z, const at::Tensor& pair_mask,
                     const at::Generator& dropout);

 private:
  bool checkpointing_;
  TemplateConfig config_;
  LayerNormLinear z_{nullptr};
  Linear linear_a_{nullptr}, linear_out_{nullptr};
  LayerNorm norm_v_{nullptr};
  std::vector<PairStack> blocks_;
};
TORCH_MODULE(TemplateEmbedder);

}  // namespace megafold::model
