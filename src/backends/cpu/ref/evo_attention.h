// The reference EvoAttention: any floating type, every step in fp64. The oracle of the tests.
#pragma once

#include "megafold/core/workspace.h"
#include "megafold/ops/evo_attention.h"

namespace megafold::cpu::ref {

void EvoAttentionForward(const ops::EvoAttentionForwardArgs& args, Workspace workspace,
                         Stream stream);
void EvoAttentionBackward(const ops::EvoAttentionBackwardArgs& args, Workspace workspace,
                          Stream stream);

}  // namespace megafold::cpu::ref
