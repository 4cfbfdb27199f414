// Gathering rows and its adjoint, summing rows by index, both differentiable and free of
// floating-point atomics: the same inputs give the same bits, on the CPU and on a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace megafold::model {

// out[m, :] = x[index[m], :]; x [R, C], index [M] int64 within [0, R) -> [M, C].
at::Tensor GatherRows(const at::Tensor& x, const at::Tensor& index);

// out[r, :] = sum of x[m, :] over the m with index[m] = r; x [M, C], index [M] int64 within [0,
// rows) -> [rows, C].
at::Tensor SumRows(const at::Tensor& x, const at::Tensor& index, std::int64_t rows);

}  // namespace megafold::model
