// Transition on the CPU: reference against finite differences, vectorised path against the
// reference, contract.
#include "megafold/ops/transition.h"

#include <gtest/gtest.h>

#include "megafold/core/error.h"
#include "tests/ops/cases.h"
#include "tests/ops/problem.h"
#include "tests/ops/targets.h"

namespace megafold::test {
namespace {

class Transition : public Problem {
 public:
  std::int64_t rows, features, hidden;
  bool gamma = true, beta = true;

  Transition(std::int64_t m, std::int64_t k, std::int64_t expansion)
      : rows(m), features(k), hidden(expansion * k) {}

  std::vector<Input> Inputs() const override {
    std::vector<Input> inputs{{.name = "x", .shape = {rows, features}, .offset = 0.5},
                              {.name = "g1", .shape = {hidden, features}, .scale = 0.3},
                              {.name = "g2", .shape = {hidden, features}, .scale = 0.3},
                              {.name = "w2", .shape = {features, hidden}, .scale = 0.3}};
    if (gamma) inputs.push_back({.name = "gamma", .shape = {features}, .offset = 1});
    if (beta) inputs.push_back({.name = "beta", .shape = {features}});
    return inputs;
  }
  std::vector<Output> Outputs() const override {
    return {{"y", {rows, features}}, {"mean", {rows}, true}, {"rstd", {rows}, true}};
  }
  void Forward(const Operands& t) const override {
    const ops::TransitionForwardArgs args{.x = Find(t, "x"),
                                          .gamma = Find(t, "gamma"),
                                          .beta = Find(t, "beta"),
                                          .g1 = Find(t, "g1"),
                                          .g2 = Find(t, "g2"),
                                          .w2 = Find(t, "w2"),
                                          .y = Find(t, "y"),
                                          .mean = Find(t, "mean"),
                                          .rstd = Find(t, "rstd")};
    const Scratch scratch(ops::TransitionForwardWorkspace(args));
    ops::TransitionForward(args, {scratch.data(), scratch.bytes()}, {});
  }
  void Backward(const Operands& t) const override {
    const ops::TransitionBackwardArgs args{.x = Find(t, "x"),
                                           .gamma = Find(t, "gamma"),
                                           .beta = Find(t, "beta"),
                                           .g1 = Find(t, "g1"),
                                           .g2 = Find(t, "g2"),
                                           .w2 = Find(t, "w2"),
                                           .mean = Find(t, "mean"),
                                           .rstd = Find(t, "rstd"),
                                           .dy = Find(t, "dy"),
                                           .dx = Find(t, "dx"),
                                           .dgamma = Find(t, "dgamma"),
                                           .dbeta = Find(t, "dbeta"),
                                           .dg1 = Find(t, "dg1"),
                                           .dg2 = Find(t, "dg2"),
                                           .dw2 = Find(t, "dw2")};
    const Scratch scratch(ops::TransitionBackwardWorkspace(args));
    ops::TransitionBackward(args, {scratch.data(), scratch.bytes()}, {});
  }
};

TEST(Transition, ReferenceMatchesFiniteDifferences) {
  ExpectMatchesFiniteDifferences(Transition(3, 4, 2), 1);
}

TEST(Transition, ReferenceWithoutOptionalOperandsMatchesFiniteDifferences) {
  Transition problem(2, 3, 3);
  problem.gamma = problem.beta = false;
  ExpectMatchesFiniteDifferences(problem, 2);
}

TEST(Transition, MatchesReference) {
  ForEachTarget([] {
    for (const Case& c : LoadCases("transition")) {
      SCOPED_TRACE(c.text);
      ExpectMatchesReference(Transition(c["M"], c["K"], c["E"]), {}, 3);
    }
  });
}

TEST(Transition, MatchesReferenceInHalfPrecision) {
  ForEachTarget([] {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const DType parameter : {dtype, DType::kFloat32}) {
        SCOPED_TRACE(Name(dtype));
        const RunOptions options{.dtype = dtype, .parameter_dtype = parameter, .gap = 3};
        ExpectMatchesReference(Transition(97, 33, 2), options, 4);
        ExpectMatchesReference(Transition(23, 64, 4), options, 5);
      }
    }
  });
}

TEST(Transition, EachOptionalOperandMayBeAbsent) {
  for (int absent = 1; absent < 4; ++absent) {
    Transition problem(23, 24, 2);
    problem.gamma = (absent & 1) == 0;
    problem.beta = (absent & 2) == 0;
    SCOPED_TRACE(absent);
    ExpectMatchesReference(problem, {.gap = 5}, 6);
  }
}

TEST(Transition, ComputesAnySubsetOfGradients) {
  for (const char* name : {"dx", "dgamma", "dbeta", "dg1", "dg2", "dw2"}) {
    SCOPED_TRACE(name);
    ExpectMatchesReference(Transition(97, 16, 4), {.only_gradients = {name}}, 7);
  }
}

TEST(Transition, IsRepeatable) {
  ExpectRepeatable(Transition(997, 32, 4), {}, 8);
  ExpectRepeatable(Transition(997, 32, 4), {.dtype = DType::kBFloat16}, 8);
}

TEST(Transition, SaturatedGatesStayFinite) {
  const Transition problem(7, 16, 2);
  Results inputs = MakeInputs(problem, DType::kFloat32, 9);
  for (double& value : inputs["g1"]) value *= 1000;  // gates of several hundred, of both signs
  const Results expected =
      Compute(problem, inputs, {.dtype = DType::kFloat64, .parameter_dtype = DType::kFloat64});
  const Results actual = Compute(problem, inputs, {});
  for (const auto& [name, values] : actual) {
    EXPECT_LE(RelativeError(values, expected.at(name)), 1e-4) << name;
  }
}

TEST(Transition, NamesTheOffendingOperand) {
  std::vector<float> data(256);
  const auto view = [&](std::initializer_list<std::int64_t> sizes) {
    return MakeView(data.data(), DType::kFloat32, sizes);
  };
  const ops::TransitionBackwardArgs good{.x = view({2, 4}),
                                         .gamma = view({4}),
                                         .beta = {},
                                         .g1 = view({8, 4}),
                                         .g2 = view({8, 4}),
                                         .w2 = view({4, 8}),
                                         .mean = view({2}),
                                         .rstd = view({2}),
                                         .dy = view({2, 4}),
                                         .dx = {},
                                         .dgamma = {},
                                         .dbeta = {},
                                         .dg1 = {},
                                         .dg2 = {},
                                         .dw2 = {}};
  const auto error_of = [&](auto change) -> std::string {
    auto args = good;
    change(args);
    try {
      ops::TransitionBackwardWorkspace(args);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of([](auto&) {}), "no error");
  EXPECT_EQ(error_of([&](auto& a) {
              a.w2 = view({8, 4});
            }),
            "transition: w2 has shape [8, 4], expected [4, 8]");
  EXPECT_EQ(error_of([&](auto& a) { a.dbeta = view({4}); }),
            "transition: dbeta is asked for, but beta is absent");
  EXPECT_EQ(error_of([&](auto& a) { a.mean = {}; }),
            "transition: mean is missing; expected shape [2]");
  EXPECT_EQ(error_of([&](auto& a) { a.gamma.dtype = DType::kFloat16; }),
            "transition: gamma is float16, expected float32");
}

}  // namespace
}  // namespace megafold::test
