// Which parameters a loss can depend on.
#pragma once

#include <torch/nn/module.h>

#include <vector>

#include "tests/model/synthetic.h"

namespace megafold::model::testing {

inline std::vector<at::Tensor> LiveParameters(const torch::nn::Module& module) {
  std::vector<at::Tensor> live;
  for (const auto& item : module.named_parameters()) {
    if (!HasNoEffect(item.key())) live.push_back(item.value());
  }
  return live;
}

}  // namespace megafold::model::testing
