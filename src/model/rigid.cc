#include "model/rigid.h"

#include <ATen/ATen.h>

namespace megafold::model {

namespace {

// The mean of x [B, S, A, 3] weighted by w [B, 1, A, 1] -> [B, S, 1, 3]; 0 without any weight.
at::Tensor WeightedMean(const at::Tensor& x, const at::Tensor& w) {
  const at::Tensor total = w.sum(2, /*keepdim=*/true);
  return (x * w).sum(2, /*keepdim=*/true) / total.clamp_min(1e-9);
}

at::Tensor AsWeights(const at::Tensor& mask, at::ScalarType type) {
  return mask.to(type).unsqueeze(1).unsqueeze(-1);
}

}  // namespace

at::Tensor RandomRotations(std::int64_t count, at::Generator generator,
                           const at::TensorOptions& options) {
  // A normal vector in four dimensions has a uniform direction: a uniform unit quaternion.
  const at::Tensor normal = at::randn({count, 4}, std::move(generator), options.dtype(at::kFloat));
  const auto parts = (normal / normal.norm(2, -1, true).clamp_min(1e-12)).unbind(-1);
  const at::Tensor &w = parts[0], &x = parts[1], &y = parts[2], &z = parts[3];
  return at::stack({1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)},
                   -1)
      .view({count, 3, 3});
}

at::Tensor CentreRandomAugmentation(const at::Tensor& x, const at::Tensor& mask,
                                    double translation_sigma, at::Generator generator) {
  const std::int64_t batch = x.size(0), samples = x.size(1);
  const at::Tensor weights = AsWeights(mask, x.scalar_type());
  const at::Tensor centred = (x - WeightedMean(x, weights)) * weights;
  const at::Tensor rotations =
      RandomRotations(batch * samples, generator, x.options()).view({batch, samples, 3, 3});
  const at::Tensor shift =
      at::randn({batch, samples, 1, 3}, generator, x.options()) * translation_sigma;
  return at::matmul(centred, rotations.to(x.scalar_type())) + shift;
}

at::Tensor WeightedRigidAlign(const at::Tensor& x, const at::Tensor& target,
                              const at::Tensor& weights) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = AsWeights(weights, x.scalar_type());
  const at::Tensor x_mean = WeightedMean(x, w);
  const at::Tensor target_mean = WeightedMean(target, w);
  const at::Tensor x_centred = x - x_mean;
  // [B, S, 3, 3], in float64: its singular values go with the square of the coordinates. Non-finite
  // coordinates must come out as a non-finite loss, not as a failure of the decomposition.
  const at::Tensor covariance = at::matmul(((target - target_mean) * w).transpose(2, 3), x_centred)
                                    .to(at::kDouble)
                                    .nan_to_num(0, 0, 0);
  auto [u, singular, vh] = at::linalg_svd(covariance);
  // Flipping the weakest direction turns a reflection into the best rotation.
  at::Tensor sign = at::ones_like(singular);
  sign.select(-1, 2).copy_(at::where(at::det(at::matmul(u, vh)) < 0, -1.0, 1.0));
  const at::Tensor rotation = at::matmul(u * sign.unsqueeze(-2), vh).to(x.scalar_type());
  const at::Tensor aligned = at::matmul(x_centred, rotation.transpose(2, 3)) + target_mean;
  const at::Tensor any = w.sum(2, /*keepdim=*/true) > 0;
  return at::where(any, aligned, x);
}

}  // namespace megafold::model
