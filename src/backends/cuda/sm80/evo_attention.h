// The portable EvoAttention (compute capability 8.0 and newer) as an implementation of the
// operator.
#pragma once

#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kPortableEvoAttention;

// The kernels' view of a call, shared with other paths. Pointers into the workspace are left null.
AttentionParams MakeAttentionParams(const ops::EvoAttentionForwardArgs& args);
AttentionParams MakeAttentionParams(const ops::EvoAttentionBackwardArgs& args);

// Whether the operands' types and shapes are among those the CUDA kernels were built for.
Support SupportsAttention(const TensorView& q, const TensorView& k, const TensorView& bias);

}  // namespace megafold::cuda
