// Encodings of integer and geometric features, made on the features' device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/features.h"

namespace megafold::model {

constexpr std::int64_t kResidueClasses = 32;

// [...] of any integer type -> [..., classes] float32; a value outside [0, classes) gives zeros.
at::Tensor OneHot(const at::Tensor& index, std::int64_t classes);

// bool, [B, N] and [B, N, N]: the tokens, and the pairs of tokens, that are no padding.
at::Tensor TokenMask(const Features& features);
at::Tensor PairMask(const at::Tensor& token_mask);

// [B, N, N] bool: whether the feature is equal on both tokens.
at::Tensor SameOnBoth(const at::Tensor& feature);

// All distances between the points x [..., N, 3]: squared, [..., N, N].
at::Tensor SquaredDistances(const at::Tensor& x);

}  // namespace megafold::model
