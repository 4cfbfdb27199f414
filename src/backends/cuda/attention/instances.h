// Which of the kernels that were built a problem gets.
#pragma once

#include "megafold/core/tensor_view.h"

namespace megafold::cuda {

// The first of an array of instances, sorted by head dimension, for the type of `q` that has room
// for its vectors; none: nullptr.
template <typename Instances>
auto FindInstance(const Instances& instances, const TensorView& q) -> decltype(&instances[0]) {
  for (const auto& instance : instances) {
    if (instance.type == q.dtype && instance.dim >= q.size(4)) return &instance;
  }
  return nullptr;
}

}  // namespace megafold::cuda
