// What the trainer needs to know of a model: nothing about its layers.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace megafold::train {

// Features by name, each with a leading batch dimension (docs/features.md).
using TensorDict = std::map<std::string, at::Tensor>;

struct LossResult {
  at::Tensor total;  // scalar, float32, differentiable
  std::vector<std::pair<std::string, at::Tensor>>
      terms;  // named unweighted parts, detached scalars, for the logs
};

class Trainable {
 public:
  virtual ~Trainable() = default;
  virtual torch::nn::Module& module() = 0;
  // Forward pass and losses on one batch. Everything random in it (recycling count, noise,
  // rotations, dropout) follows from `seed` alone, so that a step can be repeated bit for bit.
  virtual LossResult Loss(const TensorDict& batch, std::uint64_t seed) = 0;
  // Samples one structure: coordinates [B, A, 3] in Angstrom. No gradient.
  virtual at::Tensor Predict(const TensorDict& batch, std::uint64_t seed) = 0;
};

}  // namespace megafold::train
