// EvoAttention for small grids (compute capability 8.0 and newer) as an implementation of the
// operator.
#pragma once

#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kSpreadEvoAttention;

}  // namespace megafold::cuda
