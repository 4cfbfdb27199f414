// TriangleMultiplication, vectorised and threaded: float32, bfloat16 and float16 in storage, fp32
// arithmetic.
//
// A and Bm are written channel-major, one plane [reduced, free] of pairs a channel, where the
// reduced index is k and the free one i (for A) or j (for Bm). In this layout both directions are
// the same N^3 product, A^T Bm a channel, and differ only in the strides with which x is read.
// Channels go through in groups of kTriangleGroup, so that no more than a few groups' planes exist
// beside T:
//
//   forward   for each group: gated projections -> planes of A, Bm -> planes of T -> T;  then LN,
//   gate and projection backward  planes of dT (all channels), and dz = the output gate's share of
//   dZ;
//             for each group: planes of A, sigmoid, Bm, sigmoid -> gradients in their place -> dW,
//             dz += ...;  then dX
//
// dz is kept in dx itself where that is float32, else in the workspace.
#pragma once

#include "backends/implementation.h"

namespace megafold::cpu {

Kernel<ops::TriangleMultiplicationForwardArgs> TriangleMultiplicationForwardKernel();
Kernel<ops::TriangleMultiplicationBackwardArgs> TriangleMultiplicationBackwardKernel();

}  // namespace megafold::cpu
