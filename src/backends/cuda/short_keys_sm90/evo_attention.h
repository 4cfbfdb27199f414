// EvoAttention for Hopper (wgmma, TMA) where a row has 65 to 128 keys and there is no bias, as an
// implementation of the operator.
#pragma once

#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kHopperShortKeysEvoAttention;

}  // namespace megafold::cuda
