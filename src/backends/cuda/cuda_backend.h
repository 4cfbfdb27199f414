// What the CUDA backend implements, fastest first.
#pragma once

#include <span>
#include <string>

#include "backends/implementation.h"

namespace megafold::cuda {

std::span<const EvoAttentionImplementation> EvoAttentionImplementations();
std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations();
std::span<const TransitionImplementation> TransitionImplementations();
std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations();

// The device's model and architecture, and the driver; empty in a build without this backend. Throw kDevice when the
// runtime cannot say.
std::string DeviceName(int index);
std::string DriverName();

}  // namespace megafold::cuda
