// The portable EvoAttention (compute capability 8.0 and newer) as an implementation of the
// operator.
#pragma once

#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kPortableEvoAttention;

// Whether the operands' types and shapes are among those the CUDA kernels were built for.
Support SupportsAttention(const TensorView& q, const TensorView& k, const TensorView& bias);

}  // namespace megafold::cuda
