// RelativePositionEncoding (Algorithm 3).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "model/config.h"
#include "model/features.h"
#include "model/linear.h"

namespace megafold::model {

// Reads asym_id, entity_id, sym_id, residue_index and token_index; returns [B, N, N, c_z]. Offsets
// are clipped to relpos_max_residue (within a chain) and relpos_max_chain (between copies of an
// entity); what lies outside has a class of its own.
class RelativePositionEncodingImpl : public torch::nn::Module {
 public:
  explicit RelativePositionEncodingImpl(const ModelConfig& config);
  at::Tensor forward(const Features& features);

 private:
  std::int64_t max_residue_, max_chain_;
  Linear linear_{nullptr};
};
TORCH_MODULE(RelativePositionEncoding);

}  // namespace megafold::model
