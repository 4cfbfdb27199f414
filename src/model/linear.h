// Linear layers and LayerNorm with AlphaFold's initialisation.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace megafold::model {

// How a linear layer starts. A truncated normal's standard deviation is that after truncation at
// two sigma.
enum class Init {
  kLecun,   // truncated normal, variance 1 / inputs
  kHe,      // truncated normal, variance 2 / inputs: the layer before a rectifier
  kGlorot,  // uniform, variance 2 / (inputs + outputs): queries, keys, values
  kGating,  // weight 0: the gate starts half (bias 1: mostly) open
  kFinal,   // weight 0: the block starts as the identity
};

struct LinearOptions {
  Init init = Init::kLecun;
  bool bias = false;
  double bias_value = 0;
};

// y = x weight^T + bias, weight [out, in] as in torch.nn.Linear. Until InitWeights the parameters
// are NaN.
class LinearImpl : public torch::nn::Module {
 public:
  LinearImpl(std::int64_t in, std::int64_t out, const LinearOptions& options = {});
  at::Tensor forward(const at::Tensor& x) { return at::linear(x, weight, bias); }
  void Initialize(at::Generator generator);

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], undefined without bias

 private:
  LinearOptions options_;
};
TORCH_MODULE(Linear);

constexpr double kLayerNormEps = 1e-5;

struct LayerNormOptions {
  bool scale = true;
  bool offset = true;
};

// LayerNorm over the last dimension; statistics in float32. Starts as scale 1, offset 0.
class LayerNormImpl : public torch::nn::Module {
 public:
  explicit LayerNormImpl(std::int64_t width, const LayerNormOptions& options = {});
  at::Tensor forward(const at::Tensor& x);

  at::Tensor weight, bias;  // [width], undefined where left out

 private:
  std::int64_t width_;
};
TORCH_MODULE(LayerNorm);

// Initialises every Linear inside `module`. A layer's weights follow from the seed and from its
// name within `module` alone, so that adding a layer changes no other.
void InitWeights(torch::nn::Module& module, std::uint64_t seed);

// Number of parameter elements.
std::int64_t CountParameters(const torch::nn::Module& module);

}  // namespace megafold::model
