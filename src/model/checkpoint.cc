#include "model/checkpoint.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace megafold::model {

namespace {

// The autocast state that a block was first computed under. The cache of cast weights stays off: in
// a checkpointed block it would hold casts made without a graph, and each weight is cast once per
// pass anyway.
struct AutocastState {
  at::DeviceType device = at::kCPU;
  bool enabled = false;
  at::ScalarType dtype = at::kFloat;

  static AutocastState Of(at::DeviceType device) {
    return {device, at::autocast::is_autocast_enabled(device),
            at::autocast::get_autocast_dtype(device)};
  }
  void Set() const {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
  }
};

class AutocastScope {
 public:
  explicit AutocastScope(const AutocastState& state)
      : previous_(AutocastState::Of(state.device)),
        cache_(at::autocast::is_autocast_cache_enabled()) {
    state.Set();
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~AutocastScope() {
    previous_.Set();
    at::autocast::set_autocast_cache_enabled(cache_);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  AutocastState previous_;
  bool cache_;
};

struct Recipe : torch::CustomClassHolder {
  Recipe(BlockFunction block_function, std::size_t count, const AutocastState& state)
      : block(std::move(block_function)), inputs(count), autocast(state) {}
  BlockFunction block;
  std::size_t inputs;  // the first saved tensors; the others are parameters
  AutocastState autocast;
};

Tensors Run(const Recipe& recipe, const Tensors& inputs) {
  const AutocastScope scope(recipe.autocast);
  return recipe.block(inputs);
}

class CheckpointFunction : public torch::autograd::Function<CheckpointFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const c10::intrusive_ptr<Recipe>& recipe,
                                                const at::TensorList& tensors) {
    context->saved_data["recipe"] = c10::IValue::make_capsule(recipe);
    context->save_for_backward(tensors.vec());
    const Tensors inputs(tensors.begin(),
                         tensors.begin() + static_cast<std::ptrdiff_t>(recipe->inputs));
    return Run(*recipe, inputs);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto capsule = context->saved_data["recipe"].toCapsule();
    const auto& recipe = static_cast<const Recipe&>(*capsule);
    Tensors tensors = context->get_saved_variables();
    for (std::size_t i = 0; i < recipe.inputs; ++i) {
      tensors[i] = tensors[i].detach().requires_grad_(tensors[i].requires_grad());
    }
    const at::AutoGradMode record(true);
    const Tensors inputs(tensors.begin(),
                         tensors.begin() + static_cast<std::ptrdiff_t>(recipe.inputs));
    Tensors outputs = Run(recipe, inputs);

    Tensors roots, cotangents, leaves;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].requires_grad() || !gradients[i].defined()) continue;
      roots.push_back(outputs[i]);
      cotangents.push_back(gradients[i]);
    }
    for (const at::Tensor& tensor : tensors) {
      if (tensor.requires_grad()) leaves.push_back(tensor);
    }
    Tensors result(tensors.size() + 1);  // the first belongs to the recipe
    if (roots.empty() || leaves.empty()) return result;
    const Tensors computed =
        torch::autograd::grad(roots, leaves, cotangents, /*retain_graph=*/false,
                              /*create_graph=*/false, /*allow_unused=*/true);
    std::size_t next = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].requires_grad()) result[i + 1] = computed[next++];
    }
    return result;
  }
};

}  // namespace

Tensors Checkpoint(bool enabled, const BlockFunction& block, const Tensors& inputs,
                   const Tensors& parameters) {
  if (!enabled || !at::GradMode::is_enabled() || inputs.empty()) return block(inputs);
  const auto recipe = c10::make_intrusive<Recipe>(
      block, inputs.size(), AutocastState::Of(inputs.front().device().type()));
  Tensors tensors = inputs;
  tensors.insert(tensors.end(), parameters.begin(), parameters.end());
  // As a TensorList: apply() does not look into a vector for variables.
  return CheckpointFunction::apply(recipe, at::TensorList(tensors));
}

}  // namespace megafold::model
