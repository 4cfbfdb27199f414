// The trunk: what AlphaFold 3 computes once per entry, from the features to the single and pair
// representations (Algorithm 1, lines 1 to 14).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "model/atom_layout.h"
#include "model/config.h"
#include "model/features.h"
#include "model/input_embedder.h"
#include "model/layers.h"
#include "model/msa_module.h"
#include "model/pairformer.h"
#include "model/relative_position.h"
#include "model/template_embedder.h"
#include "model/trunk_output.h"

namespace megafold::model {

class TrunkImpl : public torch::nn::Module {
 public:
  explicit TrunkImpl(const ModelConfig& config);
  // Runs `cycles` recycling iterations; gradients flow through the last alone. Dropout only with a
  // generator.
  TrunkOutput forward(const Features& features, const AtomLayout& layout, std::int64_t cycles,
                      const at::Generator& dropout);

 private:
  at::Tensor InitialPair(const Features& features, const at::Tensor& s_inputs);
  // One iteration, on s and z of the previous one.
  void Cycle(const Features& features, const TrunkOutput& initial, at::Tensor& s, at::Tensor& z,
             const at::Generator& dropout);

  InputFeatureEmbedder input_embedder_{nullptr};
  Linear linear_s_{nullptr}, linear_z_i_{nullptr}, linear_z_j_{nullptr}, linear_bonds_{nullptr};
  RelativePositionEncoding relative_position_{nullptr};
  LayerNormLinear recycle_s_{nullptr}, recycle_z_{nullptr};
  TemplateEmbedder template_embedder_{nullptr};
  MsaModule msa_module_{nullptr};
  PairformerStack pairformer_{nullptr};
};
TORCH_MODULE(Trunk);

}  // namespace megafold::model
