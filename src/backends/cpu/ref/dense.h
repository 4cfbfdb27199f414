// The reference's view of tensors: plain row-major arrays of double, whatever the storage type and
// strides.
#pragma once

#include <cstdint>
#include <vector>

#include "megafold/core/tensor_view.h"

namespace megafold::cpu::ref {

using Dense = std::vector<double>;

// The elements of `view` in row-major order, upcast; empty when `view` is undefined. bool becomes 0
// or 1.
Dense Read(const TensorView& view);

// As Read, but `size` copies of `fallback` when `view` is undefined.
Dense ReadOr(const TensorView& view, std::int64_t size, double fallback);

// Stores `values` (row-major) into `view`, rounded to its type; does nothing when `view` is
// undefined.
void Write(const TensorView& view, const Dense& values);

}  // namespace megafold::cpu::ref
