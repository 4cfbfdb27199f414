#include "model/input_embedder.h"

#include "model/encodings.h"

namespace megafold::model {

InputFeatureEmbedderImpl::InputFeatureEmbedderImpl(const ModelConfig& config) {
  atom_encoder_ =
      register_module("atom_encoder", AtomAttentionEncoder(config, config.c_s, /*noised=*/false));
}

at::Tensor InputFeatureEmbedderImpl::forward(const Features& features, const AtomLayout& layout) {
  const AtomContext context = atom_encoder_->Prepare(features, layout);
  const at::Tensor atoms = atom_encoder_->forward(context, layout).tokens.squeeze(1);
  return at::cat({atoms.to(at::kFloat), OneHot(Get(features, "restype"), kResidueClasses),
                  Get(features, "profile"), Get(features, "deletion_mean").unsqueeze(-1)},
                 -1);
}

}  // namespace megafold::model
