// The kernels' view of an EvoAttention call.
#pragma once

#include "backends/cuda/attention/problem.h"
#include "megafold/ops/evo_attention.h"

namespace megafold::cuda {

AttentionProblem MakeAttentionProblem(const ops::EvoAttentionForwardArgs& args);
AttentionProblem MakeAttentionProblem(const ops::EvoAttentionBackwardArgs& args);

// Whether the last stride is 1 and every vector of the view starts on 16 bytes.
bool IsAligned(const TensorView& view);

}  // namespace megafold::cuda
