// What every operator's PyTorch registration shares: calling through the dispatcher, and autocast.
//
// An operator `f` is three PyTorch operators. `f_forward` and `f_backward` are the two calls of
// libmegafold with kernels for the devices and for meta tensors; `f_forward` has an autograd kernel
// that calls `f_backward`. `f` itself is composed of `f_forward` and carries the autocast rule, so
// that torch.compile traces it to the two others.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cstddef>
#include <optional>
#include <string>

namespace megafold::torch_ops {

// A typed handle to the operator of that name; Function is the exact type of its kernels.
template <typename Function>
c10::TypedOperatorHandle<Function> FindOperator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

// Casts operands for one call under autocast, and hides autocast from what that call does.
class AutocastScope {
 public:
  explicit AutocastScope(const at::Tensor& lead)
      : device_(lead.device().type()),
        dtype_(at::autocast::get_autocast_dtype(device_)),
        hide_(at::autocast::get_autocast_dispatch_key_from_device_type(device_)) {}

  // For operands of the storage type. float64 is left as it is, as PyTorch's own rules do.
  at::Tensor Storage(const at::Tensor& tensor) const {
    return at::autocast::cached_cast(dtype_, tensor, device_);
  }

  // For operands that may stay in float32 beside a lower storage type.
  std::optional<at::Tensor> Parameter(const std::optional<at::Tensor>& tensor) const {
    if (!tensor || !tensor->defined() || tensor->scalar_type() == at::kFloat) return tensor;
    return Storage(*tensor);
  }

 private:
  c10::DeviceType device_;
  at::ScalarType dtype_;
  c10::impl::ExcludeDispatchKeyGuard hide_;
};

// Which of the first kCount operands of Function::apply need a gradient. `saved` begins with those
// operands, undefined where absent: an absent operand has no edge in the graph, so those behind it
// move up.
template <std::size_t kCount>
std::array<bool, kCount> Needs(const torch::autograd::AutogradContext& context,
                               const torch::autograd::variable_list& saved) {
  std::array<bool, kCount> needs{};
  std::size_t edge = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    if (saved[i].defined()) needs[i] = context.needs_input_grad(edge++);
  }
  return needs;
}

// Registers the kernels of `name`, `name`_forward and `name`_backward, whose schemas and composite
// are defined already.
template <typename Forward, typename ForwardMeta, typename ForwardAutograd, typename Backward,
          typename BackwardMeta, typename Autocast>
void RegisterKernels(torch::Library& library, const std::string& name, Forward forward,
                     ForwardMeta forward_meta, ForwardAutograd forward_autograd, Backward backward,
                     BackwardMeta backward_meta, Autocast autocast) {
  using Key = c10::DispatchKey;
  const std::string forward_name = name + "_forward", backward_name = name + "_backward";
  for (const Key key : {Key::CPU, Key::CUDA}) {
    library.impl(forward_name.c_str(), key, forward);
    library.impl(backward_name.c_str(), key, backward);
  }
  library.impl(forward_name.c_str(), Key::Meta, forward_meta);
  library.impl(backward_name.c_str(), Key::Meta, backward_meta);
  library.impl(forward_name.c_str(), Key::Autograd, forward_autograd);
  // Second derivatives: an error when they are asked for, not a wrong number.
  library.impl(backward_name.c_str(),
               torch::dispatch(Key::Autograd, torch::autograd::autogradNotImplementedFallback()));
  for (const Key key : {Key::AutocastCPU, Key::AutocastCUDA}) {
    library.impl(name.c_str(), key, autocast);
  }
}

// Whether autograd would be asked for this operand's gradient.
bool AsksForGradient(const std::optional<at::Tensor>& tensor);

// Throws when a mask asks for a gradient: none is defined for it, and silence would train nothing.
void RequireNoMaskGradient(const char* op, const std::optional<at::Tensor>& mask);

}  // namespace megafold::torch_ops
