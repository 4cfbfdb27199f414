// EvoAttention on the CPU: time of forward and backward and the memory they need, over the
// "benchmark" shapes of tests/cases/evo_attention.json (cpu_benchmark.h says how). The mask is
// bool, the bias of the type measured; backward computes every gradient.
//
//   build/cpu/bin/evo_attention_benchmark [float32|bfloat16] [repetitions]
#include "megafold/ops/evo_attention.h"

#include <cmath>

#include "cpu_benchmark.h"

namespace megafold::benchmarks {
namespace {

// [B, S, N, H, D]; for the ending node stored as [B, N, S, H, D].
struct Layout {
  std::int64_t b, s, h, d;
  bool ending;

  template <typename Make>
  TensorView New(std::int64_t n, Make make) const {
    if (!ending) return make({b, s, n, h, d});
    TensorView view = make({b, n, s, h, d});
    std::swap(view.sizes[1], view.sizes[2]);
    std::swap(view.strides[1], view.strides[2]);
    return view;
  }
};

Problem EvoAttention(Tensors& t, const Shape& shape, DType dtype) {
  const Layout layout{shape.at("B"), shape.at("S"), shape.at("H"), shape.at("D"),
                      shape.contains("ending") && shape.at("ending") == 1};
  const std::int64_t queries = shape.at("Nq"), keys = shape.at("Nk"), bias_kind = shape.at("bias");
  Require(shape.at("mask") == 1, "a benchmark shape has mask ", shape.at("mask"), ", expected 1");
  const auto operand = [&](std::int64_t n) {
    return layout.New(n, [&](Sizes sizes) { return t.Operand(sizes); });
  };
  const TensorView q = operand(queries), k = operand(keys), v = operand(keys),
                   dout = operand(queries), mask = t.Mask({layout.b, layout.s, 1, 1, keys});
  const std::int64_t bias_batch = bias_kind == 2 ? 1 : layout.b;
  TensorView bias;
  if (bias_kind != 0) bias = t.Operand({bias_batch, 1, layout.h, queries, keys});
  const float scale = 1 / std::sqrt(static_cast<float>(layout.d));
  return [=](const auto& between) {
    Tensors r(dtype);
    const auto result = [&](std::int64_t n) {
      return layout.New(n, [&](Sizes sizes) { return r.Result(sizes); });
    };
    const ops::EvoAttentionForwardArgs forward{
        .q = q,
        .k = k,
        .v = v,
        .mask = mask,
        .bias = bias,
        .scale = scale,
        .out = result(queries),
        .lse = r.Statistic({layout.b, layout.s, layout.h, queries})};
    Call(forward, ops::EvoAttentionForwardWorkspace, ops::EvoAttentionForward);
    between();
    TensorView dbias;
    if (bias.defined()) dbias = r.Statistic({bias_batch, 1, layout.h, queries, keys});
    const ops::EvoAttentionBackwardArgs backward{.q = q,
                                                 .k = k,
                                                 .v = v,
                                                 .mask = mask,
                                                 .bias = bias,
                                                 .scale = scale,
                                                 .out = forward.out,
                                                 .lse = forward.lse,
                                                 .dout = dout,
                                                 .dq = result(queries),
                                                 .dk = result(keys),
                                                 .dv = result(keys),
                                                 .dbias = dbias};
    Call(backward, ops::EvoAttentionBackwardWorkspace, ops::EvoAttentionBackward);
  };
}

}  // namespace
}  // namespace megafold::benchmarks

int main(int count, char** arguments) {
  return megafold::benchmarks::Run(count, arguments,
                                   {{"evo_attention", megafold::benchmarks::EvoAttention}});
}
