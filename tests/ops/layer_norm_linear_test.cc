// LayerNormLinear on the CPU: reference against finite differences, vectorised path against the
// reference, contract.
#include "megafold/ops/layer_norm_linear.h"

#include <gtest/gtest.h>

#include "megafold/core/error.h"
#include "tests/ops/cases.h"
#include "tests/ops/problem.h"
#include "tests/ops/targets.h"

namespace megafold::test {
namespace {

class LayerNormLinear : public Problem {
 public:
  std::int64_t rows, features, outputs;
  bool gamma = true, beta = true, bias = true;

  LayerNormLinear(std::int64_t m, std::int64_t k, std::int64_t c)
      : rows(m), features(k), outputs(c) {}

  std::vector<Input> Inputs() const override {
    std::vector<Input> inputs{{.name = "x", .shape = {rows, features}, .offset = 0.5},
                              {.name = "weight", .shape = {outputs, features}, .scale = 0.3}};
    if (gamma) inputs.push_back({.name = "gamma", .shape = {features}, .offset = 1});
    if (beta) inputs.push_back({.name = "beta", .shape = {features}});
    if (bias) inputs.push_back({.name = "linear_bias", .shape = {outputs}});
    return inputs;
  }
  std::vector<Output> Outputs() const override {
    return {{"y", {rows, outputs}}, {"mean", {rows}, true}, {"rstd", {rows}, true}};
  }
  void Forward(const Operands& t) const override {
    const ops::LayerNormLinearForwardArgs args{.x = Find(t, "x"),
                                               .gamma = Find(t, "gamma"),
                                               .beta = Find(t, "beta"),
                                               .weight = Find(t, "weight"),
                                               .linear_bias = Find(t, "linear_bias"),
                                               .y = Find(t, "y"),
                                               .mean = Find(t, "mean"),
                                               .rstd = Find(t, "rstd")};
    const Scratch scratch(ops::LayerNormLinearForwardWorkspace(args));
    ops::LayerNormLinearForward(args, {scratch.data(), scratch.bytes()}, {});
  }
  void Backward(const Operands& t) const override {
    const ops::LayerNormLinearBackwardArgs args{.x = Find(t, "x"),
                                                .gamma = Find(t, "gamma"),
                                                .beta = Find(t, "beta"),
                                                .weight = Find(t, "weight"),
                                                .mean = Find(t, "mean"),
                                                .rstd = Find(t, "rstd"),
                                                .dy = Find(t, "dy"),
                                                .dx = Find(t, "dx"),
                                                .dgamma = Find(t, "dgamma"),
                                                .dbeta = Find(t, "dbeta"),
                                                .dweight = Find(t, "dweight"),
                                                .dlinear_bias = Find(t, "dlinear_bias")};
    const Scratch scratch(ops::LayerNormLinearBackwardWorkspace(args));
    ops::LayerNormLinearBackward(args, {scratch.data(), scratch.bytes()}, {});
  }
};

TEST(LayerNormLinear, ReferenceMatchesFiniteDifferences) {
  ExpectMatchesFiniteDifferences(LayerNormLinear(3, 5, 4), 1);
}

TEST(LayerNormLinear, ReferenceWithoutOptionalOperandsMatchesFiniteDifferences) {
  LayerNormLinear problem(2, 4, 3);
  problem.gamma = problem.beta = problem.bias = false;
  ExpectMatchesFiniteDifferences(problem, 2);
}

TEST(LayerNormLinear, MatchesReference) {
  ForEachTarget([] {
    for (const Case& c : LoadCases("layer_norm_linear")) {
      SCOPED_TRACE(c.text);
      ExpectMatchesReference(LayerNormLinear(c["M"], c["K"], c["C"]), {}, 3);
    }
  });
}

TEST(LayerNormLinear, MatchesReferenceInHalfPrecision) {
  ForEachTarget([] {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const DType parameter : {dtype, DType::kFloat32}) {
        SCOPED_TRACE(Name(dtype));
        const RunOptions options{.dtype = dtype, .parameter_dtype = parameter, .gap = 3};
        ExpectMatchesReference(LayerNormLinear(97, 33, 21), options, 4);
        ExpectMatchesReference(LayerNormLinear(23, 128, 64), options, 5);
      }
    }
  });
}

TEST(LayerNormLinear, TakesRowStrides) {
  ExpectMatchesReference(LayerNormLinear(23, 33, 5), {.gap = 7}, 6);
}

TEST(LayerNormLinear, EachOptionalOperandMayBeAbsent) {
  for (int absent = 0; absent < 8; ++absent) {
    LayerNormLinear problem(23, 24, 16);
    problem.gamma = (absent & 1) == 0;
    problem.beta = (absent & 2) == 0;
    problem.bias = (absent & 4) == 0;
    SCOPED_TRACE(absent);
    ExpectMatchesReference(problem, {}, 7);
  }
}

TEST(LayerNormLinear, ComputesAnySubsetOfGradients) {
  for (const char* name : {"dx", "dgamma", "dbeta", "dweight", "dlinear_bias"}) {
    SCOPED_TRACE(name);
    ExpectMatchesReference(LayerNormLinear(97, 16, 24), {.only_gradients = {name}}, 8);
  }
}

TEST(LayerNormLinear, IsRepeatable) {
  ExpectRepeatable(LayerNormLinear(997, 64, 33), {}, 9);
  ExpectRepeatable(LayerNormLinear(997, 64, 33), {.dtype = DType::kBFloat16}, 9);
}

TEST(LayerNormLinear, NoRowsGiveZeroGradients) {
  const LayerNormLinear problem(0, 8, 4);
  const Results results = Compute(problem, MakeInputs(problem, DType::kFloat32, 1), {});
  EXPECT_EQ(results.at("dweight"), Values(32, 0.0));
  EXPECT_EQ(results.at("dgamma"), Values(8, 0.0));
}

TEST(LayerNormLinear, RowFarFromZeroKeepsItsVariance) {
  LayerNormLinear problem(5, 64, 8);
  Results inputs = MakeInputs(problem, DType::kFloat32, 10);
  for (double& value : inputs["x"]) value = static_cast<float>(1000 + value);
  const Results expected =
      Compute(problem, inputs, {.dtype = DType::kFloat64, .parameter_dtype = DType::kFloat64});
  const Results actual = Compute(problem, inputs, {});
  EXPECT_LE(RelativeError(actual.at("rstd"), expected.at("rstd")), 1e-5);
}

template <typename Function>
std::string ErrorOf(Function function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

TEST(LayerNormLinear, NamesTheOffendingOperand) {
  std::vector<float> data(64);
  const auto view = [&](std::initializer_list<std::int64_t> sizes) {
    return MakeView(data.data(), DType::kFloat32, sizes);
  };
  const ops::LayerNormLinearForwardArgs good{.x = view({2, 4}),
                                             .gamma = {},
                                             .beta = {},
                                             .weight = view({3, 4}),
                                             .linear_bias = {},
                                             .y = view({2, 3}),
                                             .mean = view({2}),
                                             .rstd = view({2})};
  const auto error_of = [&](auto change) {
    auto args = good;
    change(args);
    return ErrorOf([&] { ops::LayerNormLinearForwardWorkspace(args); });
  };
  EXPECT_EQ(error_of([](auto&) {}), "no error");
  EXPECT_EQ(error_of([&](auto& a) {
              a.weight = view({3, 5});
            }),
            "layer_norm_linear: weight has shape [3, 5], expected [3, 4]");
  EXPECT_EQ(error_of([&](auto& a) { a.y = {}; }),
            "layer_norm_linear: y is missing; expected shape [2, 3]");
  EXPECT_EQ(error_of([&](auto& a) { a.x = view({8}); }),
            "layer_norm_linear: x has shape [8], expected 2 dimensions");
  EXPECT_EQ(error_of([&](auto& a) { a.y.dtype = DType::kBFloat16; }),
            "layer_norm_linear: y is bfloat16, expected float32");
  EXPECT_EQ(error_of([&](auto& a) { a.x.strides[1] = 2; }),
            "layer_norm_linear: x has stride 2 on its last dimension, expected 1");
  EXPECT_EQ(error_of([&](auto& a) { a.y.device.type = DeviceType::kCuda; }),
            "layer_norm_linear: y is on device 'cuda:0', expected 'cpu:0'");
  EXPECT_EQ(error_of([&](auto& a) { a.eps = 0; }),
            "layer_norm_linear: eps is 0, expected a positive number");
}

TEST(LayerNormLinear, RefusesASmallWorkspace) {
  std::vector<float> data(64);
  const ops::LayerNormLinearForwardArgs args{
      .x = MakeView(data.data(), DType::kFloat32, {2, 4}),
      .gamma = {},
      .beta = {},
      .weight = MakeView(data.data(), DType::kFloat32, {3, 4}),
      .linear_bias = {},
      .y = MakeView(data.data() + 16, DType::kFloat32, {2, 3}),
      .mean = MakeView(data.data() + 32, DType::kFloat32, {2}),
      .rstd = MakeView(data.data() + 40, DType::kFloat32, {2})};
  EXPECT_GT(ops::LayerNormLinearForwardWorkspace(args), 0U);
  EXPECT_NE(
      ErrorOf([&] { ops::LayerNormLinearForward(args, {}, {}); }).find("workspace has 0 bytes"),
      std::string::npos);
}

}  // namespace
}  // namespace megafold::test
