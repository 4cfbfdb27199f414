// Rigid motions of coordinates: random ones for training and sampling, and the weighted optimal one
// for the loss.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace megafold::model {

// `count` rotations [count, 3, 3] float32, uniform over all rotations.
at::Tensor RandomRotations(std::int64_t count, at::Generator generator,
                           const at::TensorOptions& options);

// CentreRandomAugmentation (Algorithm 19): x [B, S, A, 3] moved so that the mean over mask [B, A]
// is at the origin, then each sample rotated at random and translated by a normal vector of
// standard deviation `translation_sigma`. What the mask leaves out is put at the mean first.
at::Tensor CentreRandomAugmentation(const at::Tensor& x, const at::Tensor& mask,
                                    double translation_sigma, at::Generator generator);

// WeightedRigidAlign (Algorithm 28): x [B, S, A, 3] moved onto `target` (same shape) by the
// rotation and translation that minimise sum_l w_l |R x_l + t - target_l|^2; weights [B, A], not
// negative. Never a reflection. Where the weighted points do not determine the rotation (fewer than
// three, or on a line) one of the optimal rotations is taken; without any weight, x returns as it
// came. No gradient.
at::Tensor WeightedRigidAlign(const at::Tensor& x, const at::Tensor& target,
                              const at::Tensor& weights);

}  // namespace megafold::model
