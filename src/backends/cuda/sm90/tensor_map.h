// Tensor maps: how the copy engine of Hopper finds its way in a [B, S, N, H, D] operand.
#pragma once

#include <cuda.h>

#include "megafold/core/tensor_view.h"

namespace megafold::cuda {

// Why no tensor map can describe the view, or nullptr: every stride but D's, and the address, must
// be a multiple of 16 bytes; no dimension may be expanded (stride 0).
const char* TensorMapRefusal(const TensorView& view);

// Boxes of `box_tokens` tokens and `box_dim` elements of D, the rows of the box swizzled over their
// 32, 64 or 128 bytes. What lies past the end of a dimension is read as zero. Throws kDevice when
// the driver refuses.
CUtensorMap MakeTensorMap(const TensorView& view, int box_dim, int box_tokens = 64);

}  // namespace megafold::cuda
