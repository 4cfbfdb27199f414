// What the HIP backend implements, fastest first.
#pragma once

#include <span>

#include "backends/implementation.h"

namespace megafold::hip {

std::span<const EvoAttentionImplementation> EvoAttentionImplementations();
std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations();
std::span<const TransitionImplementation> TransitionImplementations();
std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations();

}  // namespace megafold::hip
