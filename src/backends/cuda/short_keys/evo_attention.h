// EvoAttention for at most 128 keys (compute capability 8.0 and newer) as an implementation of the
// operator.
#pragma once

#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kShortKeysEvoAttention;

}  // namespace megafold::cuda
