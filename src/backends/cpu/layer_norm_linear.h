// LayerNormLinear, vectorised and threaded: float32, bfloat16 and float16 in storage, fp32
// arithmetic.
//
// Every thread takes a contiguous slab of rows and works through it a block at a time: convert,
// normalise, multiply by the packed weight, store. The normalised rows exist only as a block in L2.
// Backward normalises the block again from the saved statistics, and each slab sums its own dW,
// dgamma, dbeta and dc, added in slab order at the end.
#pragma once

#include "backends/implementation.h"

namespace megafold::cpu {

Kernel<ops::LayerNormLinearForwardArgs> LayerNormLinearForwardKernel();
Kernel<ops::LayerNormLinearBackwardArgs> LayerNormLinearBackwardKernel();

}  // namespace megafold::cpu
