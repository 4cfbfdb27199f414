#include "model/encodings.h"

#include <ATen/ATen.h>

namespace megafold::model {

at::Tensor OneHot(const at::Tensor& index, std::int64_t classes) {
  const at::Tensor values = at::arange(classes, index.options().dtype(at::kInt));
  return index.unsqueeze(-1).eq(values).to(at::kFloat);
}

at::Tensor TokenMask(const Features& features) { return Get(features, "token_mask").to(at::kBool); }

at::Tensor PairMask(const at::Tensor& token_mask) {
  return token_mask.unsqueeze(-1).logical_and(token_mask.unsqueeze(-2));
}

at::Tensor SameOnBoth(const at::Tensor& feature) {
  return feature.unsqueeze(-1).eq(feature.unsqueeze(-2));
}

at::Tensor SquaredDistances(const at::Tensor& x) {
  return (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1);
}

}  // namespace megafold::model
