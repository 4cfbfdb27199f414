// EvoAttention for at most 128 keys (compute capability 8.0 and newer) as implementations of the
// operator.
#pragma once

#include "backends/implementation.h"

namespace megafold::cuda {

extern const EvoAttentionImplementation kShortKeysEvoAttention;
extern const EvoAttentionImplementation kWideShortKeysEvoAttention;  // D above 32, no bias

}  // namespace megafold::cuda
