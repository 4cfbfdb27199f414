// Transition, vectorised and threaded: float32, bfloat16 and float16 in storage, fp32 arithmetic.
//
// Every thread takes a contiguous slab of rows, a block at a time, and walks the hidden features in
// chunks: gate and value of one chunk, SwiGLU, and the product with the matching columns of W2
// (forward) or rows of G1 and G2 (backward). Only a chunk of the hidden tensor exists at any time,
// and it lies in L2. Backward computes gate and value again.
#pragma once

#include "backends/implementation.h"

namespace megafold::cpu {

Kernel<ops::TransitionForwardArgs> TransitionForwardKernel();
Kernel<ops::TransitionBackwardArgs> TransitionBackwardKernel();

}  // namespace megafold::cpu
