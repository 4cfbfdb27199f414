#include "train/ema.h"

namespace megafold::train {

Ema::Ema(NamedParameters parameters, double decay)
    : parameters_(std::move(parameters)), decay_(decay) {
  for (const auto& [name, parameter] : parameters_) {
    weights_.push_back(parameter.detach());  // shares the parameter's memory
    averages_.push_back(parameter.detach().clone());
  }
}

void Ema::Update() { at::_foreach_lerp_(averages_, weights_, 1.0 - decay_); }

NamedTensors Ema::State() const {
  NamedTensors state;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    state.emplace(parameters_[i].first, averages_[i]);
  }
  return state;
}

void Ema::Swap() {
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    const at::Tensor held = weights_[i].clone();
    weights_[i].copy_(averages_[i]);
    averages_[i].copy_(held);
  }
}

}  // namespace megafold::train
