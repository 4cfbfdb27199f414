// TriangleMultiplication on the CPU: reference against finite differences, vectorised path against
// the reference, contract.
#include "megafold/ops/triangle_multiplication.h"

#include <gtest/gtest.h>

#include <cmath>

#include "megafold/core/error.h"
#include "tests/ops/cases.h"
#include "tests/ops/problem.h"
#include "tests/ops/targets.h"

namespace megafold::test {
namespace {

using ops::TriangleDirection;
constexpr TriangleDirection kDirections[] = {TriangleDirection::kOutgoing,
                                             TriangleDirection::kIncoming};

class TriangleMultiplication : public Problem {
 public:
  TriangleDirection direction;
  std::int64_t batch, length, channels, hidden;
  bool mask = true, norm_parameters = true;

  TriangleMultiplication(TriangleDirection d, std::int64_t b, std::int64_t n, std::int64_t c,
                         std::int64_t h)
      : direction(d), batch(b), length(n), channels(c), hidden(h) {}

  std::vector<Input> Inputs() const override {
    const double scale = 1 / std::sqrt(static_cast<double>(channels));
    std::vector<Input> inputs{{.name = "x", .shape = {batch, length, length, channels}}};
    for (const char* name : {"wap", "wag", "wbp", "wbg"}) {
      inputs.push_back({.name = name, .shape = {hidden, channels}, .scale = scale});
    }
    inputs.push_back({.name = "wop", .shape = {channels, hidden}, .scale = scale});
    inputs.push_back({.name = "wog", .shape = {channels, channels}, .scale = scale});
    if (norm_parameters) {
      inputs.push_back({.name = "gamma_in", .shape = {channels}, .scale = 0.3, .offset = 1});
      inputs.push_back({.name = "beta_in", .shape = {channels}, .scale = 0.3});
      inputs.push_back({.name = "gamma_out", .shape = {hidden}, .scale = 0.3, .offset = 1});
      inputs.push_back({.name = "beta_out", .shape = {hidden}, .scale = 0.3});
    }
    if (mask) {
      inputs.push_back({.name = "mask",
                        .shape = {batch, length, length},
                        .differentiable = false,
                        .is_mask = true});
    }
    return inputs;
  }
  std::vector<Output> Outputs() const override {
    return {{"y", {batch, length, length, channels}},
            {"triangle", {batch, length, length, hidden}}};
  }
  void Forward(const Operands& t) const override {
    const ops::TriangleMultiplicationForwardArgs args{.direction = direction,
                                                      .x = Find(t, "x"),
                                                      .mask = Find(t, "mask"),
                                                      .params = Params(t, ""),
                                                      .y = Find(t, "y"),
                                                      .triangle = Find(t, "triangle")};
    const Scratch scratch(ops::TriangleMultiplicationForwardWorkspace(args));
    ops::TriangleMultiplicationForward(args, {scratch.data(), scratch.bytes()}, {});
  }
  void Backward(const Operands& t) const override {
    const ops::TriangleMultiplicationBackwardArgs args{.direction = direction,
                                                       .x = Find(t, "x"),
                                                       .mask = Find(t, "mask"),
                                                       .params = Params(t, ""),
                                                       .triangle = Find(t, "triangle"),
                                                       .dy = Find(t, "dy"),
                                                       .dx = Find(t, "dx"),
                                                       .dparams = Params(t, "d")};
    const Scratch scratch(ops::TriangleMultiplicationBackwardWorkspace(args));
    ops::TriangleMultiplicationBackward(args, {scratch.data(), scratch.bytes()}, {});
  }

 private:
  static ops::TriangleMultiplicationParams Params(const Operands& t, const std::string& prefix) {
    return {.gamma_in = Find(t, prefix + "gamma_in"),
            .beta_in = Find(t, prefix + "beta_in"),
            .wap = Find(t, prefix + "wap"),
            .wag = Find(t, prefix + "wag"),
            .wbp = Find(t, prefix + "wbp"),
            .wbg = Find(t, prefix + "wbg"),
            .gamma_out = Find(t, prefix + "gamma_out"),
            .beta_out = Find(t, prefix + "beta_out"),
            .wop = Find(t, prefix + "wop"),
            .wog = Find(t, prefix + "wog")};
  }
};

TEST(TriangleMultiplication, ReferenceMatchesFiniteDifferences) {
  for (const TriangleDirection direction : kDirections) {
    ExpectMatchesFiniteDifferences(TriangleMultiplication(direction, 2, 3, 4, 3), 1);
  }
}

// T by its definition, against a mistake that reference and fast path share.
TEST(TriangleMultiplication, TriangleFollowsItsDefinition) {
  constexpr std::int64_t kLength = 4;
  for (const TriangleDirection direction : kDirections) {
    // One channel: LayerNorm gives beta, so that A and Bm are constants under the mask and T counts
    // the kept k.
    const TriangleMultiplication problem(direction, 1, kLength, 1, 1);
    const Results inputs = MakeInputs(problem, DType::kFloat64, 2);
    const Results results =
        Compute(problem, inputs, {.dtype = DType::kFloat64, .parameter_dtype = DType::kFloat64});
    const double z = inputs.at("beta_in")[0];
    const auto gated = [&](const char* gate, const char* value) {
      return inputs.at(value)[0] * z / (1 + std::exp(-inputs.at(gate)[0] * z));
    };
    const double product = gated("wag", "wap") * gated("wbg", "wbp");
    const auto kept = [&](std::int64_t row, std::int64_t column) {
      return inputs.at("mask")[static_cast<std::size_t>(row * kLength + column)];
    };
    for (std::int64_t i = 0; i < kLength; ++i) {
      for (std::int64_t j = 0; j < kLength; ++j) {
        double count = 0;
        for (std::int64_t k = 0; k < kLength; ++k) {
          count += direction == TriangleDirection::kOutgoing ? kept(i, k) * kept(j, k)
                                                             : kept(k, i) * kept(k, j);
        }
        EXPECT_NEAR(results.at("triangle")[static_cast<std::size_t>(i * kLength + j)],
                    count * product, 1e-9);
      }
    }
  }
}

TEST(TriangleMultiplication, MatchesReference) {
  ForEachTarget([] {
    for (const Case& c : LoadCases("triangle_multiplication")) {
      for (const TriangleDirection direction : kDirections) {
        SCOPED_TRACE(c.text);
        ExpectMatchesReference(
            TriangleMultiplication(direction, c["B"], c["N"], c["C"], c["hidden"]), {}, 3);
      }
    }
  });
}

TEST(TriangleMultiplication, MatchesReferenceInHalfPrecision) {
  ForEachTarget([] {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const TriangleDirection direction : kDirections) {
        SCOPED_TRACE(Name(dtype));
        ExpectMatchesReference(TriangleMultiplication(direction, 2, 23, 33, 24),
                               {.dtype = dtype, .gap = 3}, 4);
      }
    }
  });
}

TEST(TriangleMultiplication, OptionalOperandsMayBeAbsent) {
  for (int absent = 1; absent < 4; ++absent) {
    TriangleMultiplication problem(TriangleDirection::kOutgoing, 1, 19, 16, 24);
    problem.mask = (absent & 1) == 0;
    problem.norm_parameters = (absent & 2) == 0;
    SCOPED_TRACE(absent);
    ExpectMatchesReference(problem, {.gap = 5}, 5);
  }
}

TEST(TriangleMultiplication, ComputesAnySubsetOfGradients) {
  for (const char* name : {"dx", "dgamma_in", "dbeta_in", "dwap", "dwag", "dwbp", "dwbg",
                           "dgamma_out", "dbeta_out", "dwop", "dwog"}) {
    SCOPED_TRACE(name);
    ExpectMatchesReference(TriangleMultiplication(TriangleDirection::kIncoming, 2, 9, 8, 12),
                           {.only_gradients = {name}}, 6);
  }
}

TEST(TriangleMultiplication, IsRepeatable) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    ExpectRepeatable(TriangleMultiplication(TriangleDirection::kOutgoing, 1, 61, 32, 33),
                     {.dtype = dtype}, 7);
  }
}

TEST(TriangleMultiplication, NamesTheOffendingOperand) {
  std::vector<float> data(256);
  const auto view = [&](std::initializer_list<std::int64_t> sizes) {
    return MakeView(data.data(), DType::kFloat32, sizes);
  };
  ops::TriangleMultiplicationForwardArgs good{.x = view({1, 3, 3, 4}),
                                              .mask = view({1, 3, 3}),
                                              .params = {.gamma_in = {},
                                                         .beta_in = {},
                                                         .wap = view({2, 4}),
                                                         .wag = view({2, 4}),
                                                         .wbp = view({2, 4}),
                                                         .wbg = view({2, 4}),
                                                         .gamma_out = {},
                                                         .beta_out = {},
                                                         .wop = view({4, 2}),
                                                         .wog = view({4, 4})},
                                              .y = view({1, 3, 3, 4}),
                                              .triangle = view({1, 3, 3, 2})};
  const auto error_of = [&](auto change) -> std::string {
    auto args = good;
    change(args);
    try {
      ops::TriangleMultiplicationForwardWorkspace(args);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of([](auto&) {}), "no error");
  EXPECT_EQ(error_of([&](auto& a) {
              a.x = view({1, 3, 2, 4});
            }),
            "triangle_multiplication: x has shape [1, 3, 2, 4], expected [B, N, N, C] with both "
            "middle dimensions equal");
  EXPECT_EQ(error_of([&](auto& a) {
              a.mask = view({1, 3, 2});
            }),
            "triangle_multiplication: mask has shape [1, 3, 2], expected [1, 3, 3]");
  EXPECT_EQ(error_of([&](auto& a) {
              a.params.wbg = view({4, 2});
            }),
            "triangle_multiplication: wbg has shape [4, 2], expected [2, 4]");
  EXPECT_EQ(error_of([&](auto& a) { a.mask.dtype = DType::kFloat64; }),
            "triangle_multiplication: mask is float64, expected bool, float32 or float32");
}

}  // namespace
}  // namespace megafold::test
