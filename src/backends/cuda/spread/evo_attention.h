// EvoAttention for small grids (compute capability 8.0 and newer) as an implementation of the
// operator.
#pragma once

#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kSpreadEvoAttention;
// The same for few windows that share a bias, which it does sooner than the path for short keys.
extern const EvoAttentionImplementation kWindowsSpreadEvoAttention;

}  // namespace megafold::cuda
