// What the path for small grids takes: what it can do and, as measured, does faster than the
// others.
#pragma once

#include "megafold/core/support.h"
#include "megafold/ops/evo_attention.h"

namespace megafold::cuda {

// kWindows: few windows that share a bias alone, which another path would take first.
template <bool kWindows>
Support SupportsSpread(const ops::EvoAttentionForwardArgs& args);
template <bool kWindows>
Support SupportsSpread(const ops::EvoAttentionBackwardArgs& args);

}  // namespace megafold::cuda
