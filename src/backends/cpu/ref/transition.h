// The reference Transition: any floating type, every step in fp64. The oracle of the tests.
#pragma once

#include "megafold/core/workspace.h"
#include "megafold/ops/transition.h"

namespace megafold::cpu::ref {

void TransitionForward(const ops::TransitionForwardArgs& args, Workspace workspace, Stream stream);
void TransitionBackward(const ops::TransitionBackwardArgs& args, Workspace workspace,
                        Stream stream);

}  // namespace megafold::cpu::ref
