#include "train/adam.h"

#include "megafold/core/error.h"

namespace megafold::train {

Adam::Adam(NamedParameters parameters, const OptimizerConfig& config)
    : parameters_(std::move(parameters)), config_(config) {
  Require(!parameters_.empty(), "the model has no parameter to train");
  for (const auto& [name, parameter] : parameters_) {
    Require(parameter.scalar_type() == at::kFloat, "parameter '", name, "' is ",
            at::toString(parameter.scalar_type()), ", expected Float");
    exp_avg_.push_back(at::zeros_like(parameter));
    exp_avg_sq_.push_back(at::zeros_like(parameter));
    steps_.push_back(at::zeros({}, parameter.options()));
  }
}

at::Tensor Adam::GradientNorm() const {
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : parameters_) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return at::zeros({}, parameters_.front().second.options());
  return at::stack(at::_foreach_norm(gradients, 2)).norm();
}

void Adam::Step(double rate, const at::Tensor& gradient_norm, const at::Tensor& found_bad) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> gradients;
  std::vector<at::Tensor> exp_avg;
  std::vector<at::Tensor> exp_avg_sq;
  std::vector<at::Tensor> steps;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i].second;
    if (!parameter.grad().defined()) continue;
    parameters.push_back(parameter);
    gradients.push_back(parameter.grad());
    exp_avg.push_back(exp_avg_[i]);
    exp_avg_sq.push_back(exp_avg_sq_[i]);
    steps.push_back(steps_[i]);
  }
  if (parameters.empty()) return;
  // The fused kernel divides each gradient by `grad_scale` as it reads it: the clipping costs no
  // pass of its own, and no wait for the norm.
  const at::Tensor grad_scale = (gradient_norm / config_.clip_norm).clamp_min(1).to(at::kFloat);
  at::_foreach_add_(steps, 1);
  at::_fused_adam_(parameters, gradients, exp_avg, exp_avg_sq, {}, steps, rate, config_.beta1,
                   config_.beta2, /*weight_decay=*/0, config_.epsilon, /*amsgrad=*/false,
                   /*maximize=*/false, grad_scale, found_bad);
  at::_foreach_sub_(steps, std::vector<at::Tensor>(steps.size(), found_bad));
}

void Adam::ClearGradients() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad().reset();
}

std::string Adam::FirstBadGradient() const {
  for (const auto& [name, parameter] : parameters_) {
    const at::Tensor& gradient = parameter.grad();
    if (gradient.defined() && !gradient.isfinite().all().item<bool>()) return name;
  }
  return "";
}

NamedTensors Adam::State() const {
  NamedTensors state;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::string& name = parameters_[i].first;
    state.emplace("exp_avg." + name, exp_avg_[i]);
    state.emplace("exp_avg_sq." + name, exp_avg_sq_[i]);
    state.emplace("step." + name, steps_[i]);
  }
  return state;
}

}  // namespace megafold::train
