// Activation checkpointing: a block keeps its inputs alone and is computed again in the backward
// pass.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <vector>

namespace megafold::model {

using Tensors = std::vector<at::Tensor>;

// A block without state or randomness of its own: equal inputs give equal outputs, in any number of
// calls. Whatever else it reads (dropout masks, masks of padding) it captures by value.
using BlockFunction = std::function<Tensors(const Tensors&)>;

// block(inputs). With `enabled` and gradients recorded, the graph holds `inputs` and `block`
// instead of what block computed; backward computes it again under the autocast state of this call.
// `parameters` are all that block reads and differentiates beside the inputs; gradients reach them
// as through any operator. No second derivative.
Tensors Checkpoint(bool enabled, const BlockFunction& block, const Tensors& inputs,
                   const Tensors& parameters);

}  // namespace megafold::model
