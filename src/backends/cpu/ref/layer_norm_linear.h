// The reference LayerNormLinear: any floating type, every step in fp64. The oracle of the tests.
#pragma once

#include "megafold/core/workspace.h"
#include "megafold/ops/layer_norm_linear.h"

namespace megafold::cpu::ref {

void LayerNormLinearForward(const ops::LayerNormLinearForwardArgs& args, Workspace workspace,
                            Stream stream);
void LayerNormLinearBackward(const ops::LayerNormLinearBackwardArgs& args, Workspace workspace,
                             Stream stream);

}  // namespace megafold::cpu::ref
