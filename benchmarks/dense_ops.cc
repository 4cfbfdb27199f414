// LayerNormLinear, Transition and TriangleMultiplication on the CPU: time of forward and backward
// and the memory they need, over the "benchmark" shapes of tests/cases (cpu_benchmark.h says how).
//
//   build/cpu/bin/dense_ops_benchmark [float32|bfloat16] [repetitions]
#include "cpu_benchmark.h"
#include "megafold/ops/layer_norm_linear.h"
#include "megafold/ops/transition.h"
#include "megafold/ops/triangle_multiplication.h"

namespace megafold::benchmarks {
namespace {

Problem LayerNormLinear(Tensors& t, const Shape& shape, DType dtype) {
  const std::int64_t m = shape.at("M"), k = shape.at("K"), c = shape.at("C");
  const TensorView x = t.Operand({m, k}), gamma = t.Operand({k}), beta = t.Operand({k}),
                   weight = t.Operand({c, k}, 0.1F), bias = t.Operand({c}), dy = t.Operand({m, c});
  return [=](const auto& between) {
    Tensors r(dtype);
    const ops::LayerNormLinearForwardArgs forward{
        x, gamma, beta, weight, bias, 1e-5F, r.Result({m, c}), r.Statistic({m}), r.Statistic({m})};
    Call(forward, ops::LayerNormLinearForwardWorkspace, ops::LayerNormLinearForward);
    between();
    const ops::LayerNormLinearBackwardArgs backward{x,
                                                    gamma,
                                                    beta,
                                                    weight,
                                                    forward.mean,
                                                    forward.rstd,
                                                    dy,
                                                    r.Result({m, k}),
                                                    r.Result({k}),
                                                    r.Result({k}),
                                                    r.Result({c, k}),
                                                    r.Result({c})};
    Call(backward, ops::LayerNormLinearBackwardWorkspace, ops::LayerNormLinearBackward);
  };
}

Problem Transition(Tensors& t, const Shape& shape, DType dtype) {
  const std::int64_t m = shape.at("M"), k = shape.at("K"), h = shape.at("E") * k;
  const TensorView x = t.Operand({m, k}), gamma = t.Operand({k}), beta = t.Operand({k}),
                   g1 = t.Operand({h, k}, 0.1F), g2 = t.Operand({h, k}, 0.1F),
                   w2 = t.Operand({k, h}, 0.1F), dy = t.Operand({m, k});
  return [=](const auto& between) {
    Tensors r(dtype);
    const ops::TransitionForwardArgs forward{
        x, gamma, beta, g1, g2, w2, 1e-5F, r.Result({m, k}), r.Statistic({m}), r.Statistic({m})};
    Call(forward, ops::TransitionForwardWorkspace, ops::TransitionForward);
    between();
    const ops::TransitionBackwardArgs backward{x,
                                               gamma,
                                               beta,
                                               g1,
                                               g2,
                                               w2,
                                               forward.mean,
                                               forward.rstd,
                                               dy,
                                               r.Result({m, k}),
                                               r.Result({k}),
                                               r.Result({k}),
                                               r.Result({h, k}),
                                               r.Result({h, k}),
                                               r.Result({k, h})};
    Call(backward, ops::TransitionBackwardWorkspace, ops::TransitionBackward);
  };
}

Problem TriangleMultiplication(Tensors& t, const Shape& shape, DType dtype) {
  const std::int64_t b = shape.at("B"), n = shape.at("N"), c = shape.at("C"),
                     h = shape.at("hidden");
  const auto params = [b, n, c, h](auto make) {
    return ops::TriangleMultiplicationParams{make({c}),    make({c}),    make({h, c}), make({h, c}),
                                             make({h, c}), make({h, c}), make({h}),    make({h}),
                                             make({c, h}), make({c, c})};
  };
  const ops::TriangleMultiplicationParams values =
      params([&](Sizes sizes) { return t.Operand(sizes, 0.1F); });
  const TensorView x = t.Operand({b, n, n, c}), dy = t.Operand({b, n, n, c}),
                   mask = t.Operand({b, n, n});
  return [=](const auto& between) {
    Tensors r(dtype);
    const ops::TriangleMultiplicationForwardArgs forward{ops::TriangleDirection::kOutgoing,
                                                         x,
                                                         mask,
                                                         values,
                                                         1e-5F,
                                                         r.Result({b, n, n, c}),
                                                         r.Result({b, n, n, h})};
    Call(forward, ops::TriangleMultiplicationForwardWorkspace, ops::TriangleMultiplicationForward);
    between();
    const ops::TriangleMultiplicationBackwardArgs backward{
        ops::TriangleDirection::kOutgoing,
        x,
        mask,
        values,
        1e-5F,
        forward.triangle,
        dy,
        r.Result({b, n, n, c}),
        params([&](Sizes sizes) { return r.Result(sizes); })};
    Call(backward, ops::TriangleMultiplicationBackwardWorkspace,
         ops::TriangleMultiplicationBackward);
  };
}

}  // namespace
}  // namespace megafold::benchmarks

int main(int count, char** arguments) {
  using namespace megafold::benchmarks;
  return Run(count, arguments,
             {{"layer_norm_linear", LayerNormLinear},
              {"transition", Transition},
              {"triangle_multiplication", TriangleMultiplication}});
}
