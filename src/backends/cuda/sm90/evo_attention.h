// EvoAttention for Hopper (compute capability 9.0: wgmma, TMA) as an implementation of the
// operator.
#pragma once

#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kHopperEvoAttention;

}  // namespace megafold::cuda
