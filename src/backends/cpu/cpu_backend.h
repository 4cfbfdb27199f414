// What the CPU backend implements, fastest first.
#pragma once

#include <span>
#include <string>

#include "backends/implementation.h"

namespace megafold::cpu {

std::span<const EvoAttentionImplementation> EvoAttentionImplementations();
std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations();
std::span<const TransitionImplementation> TransitionImplementations();
std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations();

// The processor's model, as the system names it.
std::string DeviceName();

}  // namespace megafold::cpu
