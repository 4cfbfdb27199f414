#include "torch_ops/dispatch.h"

#include <ATen/core/grad_mode.h>

#include "megafold/core/error.h"

namespace megafold::torch_ops {

bool AsksForGradient(const std::optional<at::Tensor>& tensor) {
  return at::GradMode::is_enabled() && tensor && tensor->defined() && tensor->requires_grad();
}

void RequireNoMaskGradient(const char* op, const std::optional<at::Tensor>& mask) {
  Require(
      !AsksForGradient(mask), op,
      ": mask requires a gradient, which is not defined for it; detach it, or pass it as a bias");
}

}  // namespace megafold::torch_ops
