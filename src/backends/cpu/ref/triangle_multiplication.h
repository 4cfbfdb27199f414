// The reference TriangleMultiplication: any floating type, every step in fp64. The oracle of the
// tests.
#pragma once

#include "megafold/core/workspace.h"
#include "megafold/ops/triangle_multiplication.h"

namespace megafold::cpu::ref {

void TriangleMultiplicationForward(const ops::TriangleMultiplicationForwardArgs& args,
                                   Workspace workspace, Stream stream);
void TriangleMultiplicationBackward(const ops::TriangleMultiplicationBackwardArgs& args,
                                    Workspace workspace, Stream stream);

}  // namespace megafold::cpu::ref
