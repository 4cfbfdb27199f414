#include "model/linear.h"

#include <cmath>
#include <limits>
#include <string>

#include "model/random.h"

namespace megafold::model {

namespace {

constexpr double kTruncation = 2;             // in standard deviations
constexpr double kTruncatedStd = 0.87962566;  // standard deviation of a unit normal truncated there

void FillTruncatedNormal(at::Tensor tensor, double std, at::Generator generator) {
  const double low = std::erf(-kTruncation / std::sqrt(2.0));
  tensor.uniform_(low, -low, generator).erfinv_();
  tensor.mul_(std::sqrt(2.0) * std / kTruncatedStd);
}

void FillWeight(at::Tensor weight, Init init, at::Generator generator) {
  const auto out = static_cast<double>(weight.size(0));
  const auto in = static_cast<double>(weight.size(1));
  switch (init) {
    case Init::kLecun:
      FillTruncatedNormal(weight, std::sqrt(1 / in), generator);
      return;
    case Init::kHe:
      FillTruncatedNormal(weight, std::sqrt(2 / in), generator);
      return;
    case Init::kGlorot: {
      const double limit = std::sqrt(6 / (in + out));
      weight.uniform_(-limit, limit, generator);
      return;
    }
    case Init::kGating:
    case Init::kFinal:
      weight.zero_();
      return;
  }
}

}  // namespace

LinearImpl::LinearImpl(std::int64_t in, std::int64_t out, const LinearOptions& options)
    : torch::nn::Module("Linear"), options_(options) {
  const double unset = std::numeric_limits<double>::quiet_NaN();
  weight = register_parameter("weight", at::full({out, in}, unset, at::kFloat));
  if (options.bias) bias = register_parameter("bias", at::full({out}, unset, at::kFloat));
}

void LinearImpl::Initialize(at::Generator generator) {
  const at::NoGradGuard no_grad;
  FillWeight(weight, options_.init, std::move(generator));
  if (bias.defined()) bias.fill_(options_.bias_value);
}

LayerNormImpl::LayerNormImpl(std::int64_t width, const LayerNormOptions& options)
    : torch::nn::Module("LayerNorm"), width_(width) {
  if (options.scale) weight = register_parameter("weight", at::ones({width}));
  if (options.offset) bias = register_parameter("bias", at::zeros({width}));
}

at::Tensor LayerNormImpl::forward(const at::Tensor& x) {
  return at::layer_norm(x, {width_}, weight, bias, kLayerNormEps);
}

void InitWeights(torch::nn::Module& module, std::uint64_t seed) {
  // Not through named_modules() with `module` itself: that fails within a constructor.
  const auto initialize = [seed](torch::nn::Module* layer, const std::string& name) {
    if (auto* linear = dynamic_cast<LinearImpl*>(layer)) {
      linear->Initialize(MakeGenerator(linear->weight.device(), DeriveSeed(seed, name)));
    }
  };
  initialize(&module, "");
  for (const auto& item : module.named_modules("", /*include_self=*/false)) {
    initialize(item.value().get(), item.key());
  }
}

std::int64_t CountParameters(const torch::nn::Module& module) {
  std::int64_t count = 0;
  for (const at::Tensor& parameter : module.parameters()) count += parameter.numel();
  return count;
}

}  // namespace megafold::model
