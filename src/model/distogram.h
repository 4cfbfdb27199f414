// DistogramHead and its loss.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "model/config.h"
#include "model/features.h"
#include "model/linear.h"

namespace megafold::model {

class DistogramHeadImpl : public torch::nn::Module {
 public:
  explicit DistogramHeadImpl(const ModelConfig& config);
  // z [B, N, N, c_z] -> symmetric logits [B, N, N, bins] float32.
  at::Tensor forward(const at::Tensor& z);

 private:
  Linear linear_{nullptr};
};
TORCH_MODULE(DistogramHead);

// Cross entropy of the distance bins of the tokens' representative atoms (token_rep_atom), averaged
// over the token pairs of which both are resolved; 0 without any. logits [B, N, N, bins] -> scalar,
// float32.
at::Tensor DistogramLoss(const at::Tensor& logits, const Features& features,
                         const DistogramConfig& config);

}  // namespace megafold::model
