#include "model/smooth_lddt.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace megafold::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::array<double, 4> kThresholds{0.5, 1, 2, 4};

// x_l - x_m along one axis: rows [.., R, 1] - all [.., 1, A].
at::Tensor Difference(const at::Tensor& rows, const at::Tensor& all, int axis) {
  return rows.select(-1, axis).unsqueeze(-1) - all.select(-1, axis).unsqueeze(-2);
}

at::Tensor Distance(const at::Tensor& rows, const at::Tensor& all) {
  at::Tensor squared = Difference(rows, all, 0).square_();
  for (int axis = 1; axis < 3; ++axis) {
    const at::Tensor difference = Difference(rows, all, axis);
    squared.addcmul_(difference, difference);
  }
  return squared.sqrt_();
}

// The pairs (l in [first, first + rows), m) that count, as 0 and 1, and the true distances: [B, 1,
// rows, A].
struct Pairs {
  at::Tensor counts, distance;
};

Pairs PairsOf(const at::Tensor& truth, const at::Tensor& nucleotide, const at::Tensor& exists,
              std::int64_t first, std::int64_t rows) {
  Pairs pairs;
  pairs.distance = Distance(truth.narrow(1, first, rows), truth);
  const at::Tensor radius =
      at::where(nucleotide.narrow(1, first, rows), kLddtNucleotideRadius, kLddtRadius);
  const at::Tensor l = at::arange(first, first + rows, truth.options().dtype(at::kLong));
  const at::Tensor m = at::arange(truth.size(1), l.options());
  const at::Tensor counts = pairs.distance.lt(radius.unsqueeze(-1)) & l.unsqueeze(-1).ne(m) &
                            exists.narrow(1, first, rows).unsqueeze(-1) & exists.unsqueeze(1);
  pairs.counts = counts.to(truth.scalar_type()).unsqueeze(1);
  pairs.distance = pairs.distance.unsqueeze(1);
  return pairs;
}

// Sum and, added into `gradient` [B, S, A, 3] where defined, the gradient of sum_(l, m) counts *
// score.
at::Tensor Accumulate(const at::Tensor& x, const Pairs& pairs, std::int64_t first,
                      std::int64_t rows, at::Tensor gradient) {
  const at::Tensor x_rows = x.narrow(2, first, rows);
  const at::Tensor distance = Distance(x_rows, x);  // [B, S, rows, A]
  const at::Tensor error = distance - pairs.distance;
  // sigmoid(t - |error|) = 1 / (1 + exp(-t) exp(|error|)): one exponential for all thresholds.
  // Where it overflows the score is 0, as it should be.
  const at::Tensor growth = error.abs().exp_();
  const at::Tensor one = at::ones({}, growth.options());
  at::Tensor score = at::zeros_like(growth);
  at::Tensor slope = gradient.defined() ? at::zeros_like(growth) : at::Tensor();
  for (const double threshold : kThresholds) {
    const at::Tensor passed = at::add(one, growth, std::exp(-threshold)).reciprocal_();
    score.add_(passed);
    if (slope.defined()) slope.addcmul_(passed, passed);
  }
  // d score / d |error| = mean of -passed (1 - passed).
  if (slope.defined()) slope.sub_(score).div_(kThresholds.size());
  score.div_(kThresholds.size());
  if (slope.defined()) {
    // d score / d x_l = slope sign(error) (x_l - x_m) / distance; two atoms in one place have no
    // direction.
    slope.mul_(error.sign()).mul_(pairs.counts).div_(distance.clamp_min(1e-8));
    // Sums over m (and over l) of slope (x_l - x_m) as products with x, which is centred so that
    // nothing large cancels.
    const at::Tensor centred = x - x.mean(2, /*keepdim=*/true);
    const at::Tensor centred_rows = centred.narrow(2, first, rows);
    gradient.narrow(2, first, rows)
        .add_(slope.sum(3, /*keepdim=*/true) * centred_rows)
        .sub_(at::matmul(slope, centred));
    const at::Tensor turned = slope.transpose(2, 3);
    gradient.add_(turned.sum(3, /*keepdim=*/true) * centred).sub_(at::matmul(turned, centred_rows));
  }
  return score.mul_(pairs.counts).sum({2, 3});
}

struct SmoothLddtFunction : torch::autograd::Function<SmoothLddtFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& truth,
                            const at::Tensor& nucleotide, const at::Tensor& exists,
                            std::int64_t block) {
    const std::int64_t atoms = x.size(2);
    const std::int64_t per_row = std::max<std::int64_t>(1, x.size(0) * x.size(1) * atoms);
    const std::int64_t step = std::max<std::int64_t>(1, block / per_row);
    at::Tensor gradient = x.requires_grad() ? at::zeros_like(x) : at::Tensor();
    at::Tensor score = at::zeros({x.size(0), x.size(1)}, x.options());
    at::Tensor count = at::zeros({x.size(0), 1}, x.options());
    for (std::int64_t first = 0; first < atoms; first += step) {
      const std::int64_t rows = std::min(step, atoms - first);
      const Pairs pairs = PairsOf(truth, nucleotide, exists, first, rows);
      score.add_(Accumulate(x, pairs, first, rows, gradient));
      count.add_(pairs.counts.sum({2, 3}));
    }
    const at::Tensor any = count > 0;
    count.clamp_min_(1);
    if (gradient.defined()) {
      context->save_for_backward({gradient.neg_().div_(count.unsqueeze(-1).unsqueeze(-1))});
    }
    return at::where(any, 1 - score / count, 0);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor gradient = context->get_saved_variables()[0];
    return {gradient * gradients[0].unsqueeze(-1).unsqueeze(-1), {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor SmoothLddtLoss(const at::Tensor& x, const at::Tensor& truth,
                          const at::Tensor& nucleotide, const at::Tensor& exists,
                          std::int64_t block) {
  if (block == 0) block = x.is_cpu() ? kLddtCpuBlock : kLddtBlock;
  return SmoothLddtFunction::apply(x, truth, nucleotide, exists, block);
}

}  // namespace megafold::model
