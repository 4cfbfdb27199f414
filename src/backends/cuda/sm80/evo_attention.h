// The portable EvoAttention (compute capability 8.0 and newer) as implementations of the operator.
#pragma once

#include <span>

#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/implementation.h"

namespace megafold::cuda {

// "cuda sm80", which chooses its tilings by heuristic, then variants of it with one kind of tiling
// each.
std::span<const EvoAttentionImplementation> PortableEvoAttention();

// Whether the operands' types and shapes are among those the CUDA kernels were built for.
Support SupportsAttention(const TensorView& q, const TensorView& k, const TensorView& bias);

}  // namespace megafold::cuda
