// Transition's backward where there are fewer rows than hidden features, as of a single
// representation: weights and their gradients are then the larger operands, and shares of the rows
// would each need a copy of the gradients.
//
// Every thread takes a range of hidden features, a chunk at a time, and all rows: it alone computes
// the chunk's rows of dG1 and dG2 and columns of dW2, where they lie if they are float32. The
// gradient of the normalised rows is a sum over threads, added in their order: it depends on how
// many there are. Weights are packed a chunk at a time.
#pragma once

#include <cstddef>

#include "megafold/core/workspace.h"
#include "megafold/ops/transition.h"

namespace megafold::cpu {

bool HasFewRows(const ops::TransitionBackwardArgs& args);
std::size_t TransitionFewRowsWorkspace(const ops::TransitionBackwardArgs& args);
void TransitionFewRowsBackward(const ops::TransitionBackwardArgs& args, Workspace workspace);

}  // namespace megafold::cpu
