// Smooth LDDT loss (Algorithm 27).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace megafold::model {

constexpr double kLddtRadius = 15;            // Angstrom
constexpr double kLddtNucleotideRadius = 30;  // where the first atom belongs to a nucleotide
// Elements of a block of pairs: few launches on a GPU, and what a CPU's cache holds.
constexpr std::int64_t kLddtBlock = std::int64_t{1} << 24;
constexpr std::int64_t kLddtCpuBlock = std::int64_t{1} << 18;

// 1 - the mean over pairs l != m of (1/4) sum_t sigmoid(t - | |x_l - x_m| - |y_l - y_m| |), t =
// 0.5, 1, 2, 4 Angstrom, over the pairs with |y_l - y_m| below the radius of l. x [B, S, A, 3]
// predicted; truth y [B, A, 3]; nucleotide [B, A] and exists [B, A] bool. Returns [B, S] float32; 0
// where there is no pair.
//
// The value and its gradient are computed together, over blocks of first atoms of at most `block`
// (sample, l, m) elements, so that memory is a few such blocks and the gradient, never S A A. 0
// takes the constant above that suits the device.
at::Tensor SmoothLddtLoss(const at::Tensor& x, const at::Tensor& truth,
                          const at::Tensor& nucleotide, const at::Tensor& exists,
                          std::int64_t block = 0);

}  // namespace megafold::model
