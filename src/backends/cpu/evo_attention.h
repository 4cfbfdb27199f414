// EvoAttention, vectorised and threaded: float32, bfloat16 and float16 in storage, fp32 arithmetic.
//
// A work item is one head, some of the rows that share its bias plane and, forward, some of the
// queries. For every row, K and V are converted once; then tiles of queries meet tiles of keys:
// scores, softmax with a running maximum, product with V. Backward computes the weights again from
// the log-sum-exp. No more than one tile of scores exists per thread.
//
// Ownership in backward: an item covers all queries and keys of its rows, so it alone writes their
// dQ, dK and dV. dBias is a sum over rows: each item sums its own rows in order, the first of a
// plane in place and the others in the workspace, and these planes are added in order at the end.
// Results repeat bit for bit; dBias depends on the number of threads, the others do not.
#pragma once

#include "backends/implementation.h"

namespace megafold::cpu {

Kernel<ops::EvoAttentionForwardArgs> EvoAttentionForwardKernel();
Kernel<ops::EvoAttentionBackwardArgs> EvoAttentionBackwardKernel();

}  // namespace megafold::cpu
