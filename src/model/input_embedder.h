// InputFeatureEmbedder (Algorithm 2).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "model/atom_attention.h"
#include "model/atom_layout.h"
#include "model/config.h"
#include "model/features.h"

namespace megafold::model {

class InputFeatureEmbedderImpl : public torch::nn::Module {
 public:
  explicit InputFeatureEmbedderImpl(const ModelConfig& config);
  // -> s_inputs [B, N, c_s + 65]: the token's atoms, residue class, profile, mean number of
  // deletions.
  at::Tensor forward(const Features& features, const AtomLayout& layout);

 private:
  AtomAttentionEncoder atom_encoder_{nullptr};
};
TORCH_MODULE(InputFeatureEmbedder);

}  // namespace megafold::model
