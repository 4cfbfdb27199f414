// What the model is given: the arrays of docs/features.md as tensors on the model's device, each
// with a leading batch dimension.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "megafold/core/error.h"

namespace megafold::model {

using Features = std::map<std::string, at::Tensor>;

// The feature `name`. Throws megafold::Error (kInvalidArgument) when the batch lacks it.
inline const at::Tensor& Get(const Features& features, const std::string& name) {
  const auto found = features.find(name);
  Require(found != features.end(), "the batch has no feature '", name, "'");
  return found->second;
}

}  // namespace megafold::model
