// Which parameters a loss can depend on.
#pragma once

#include <torch/torch.h>

#include <vector>

namespace megafold::model::testing {

// All parameters but the offset of the LayerNorm before a pair bias: it adds the same to every key
// of a head, which the softmax does not see, so that its gradient is rounding alone.
inline std::vector<at::Tensor> LiveParameters(const torch::nn::Module& module) {
  std::vector<at::Tensor> live;
  for (const auto& item : module.named_parameters()) {
    if (!item.key().ends_with("norm_z.bias")) live.push_back(item.value());
  }
  return live;
}

}  // namespace megafold::model::testing
