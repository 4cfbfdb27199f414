// EvoAttention on the CPU: reference against finite differences, vectorised path against the
// reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "megafold/core/threads.h"
#include "tests/ops/cases.h"
#include "tests/ops/evo_attention_problem.h"
#include "tests/ops/problem.h"
#include "tests/ops/targets.h"

namespace megafold::test {
namespace {

using Mask = EvoAttention::Mask;
using Bias = EvoAttention::Bias;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

EvoAttention Small(Mask mask, Bias bias) {
  EvoAttention problem;
  problem.batch = 2;
  problem.rows = 3;
  problem.queries = 3;
  problem.keys = 4;
  problem.heads = 2;
  problem.dim = 3;
  problem.mask = mask;
  problem.bias = bias;
  return problem;
}

EvoAttention Medium(Mask mask, Bias bias) {
  EvoAttention problem = Small(mask, bias);
  problem.queries = 61;
  problem.keys = 83;
  problem.dim = 24;
  return problem;
}

TEST(EvoAttention, ReferenceMatchesFiniteDifferences) {
  ExpectMatchesFiniteDifferences(Small(Mask::kNone, Bias::kNone), 1);
  ExpectMatchesFiniteDifferences(Small(Mask::kBool, Bias::kPerBatch), 2);
  ExpectMatchesFiniteDifferences(Small(Mask::kAdditive, Bias::kShared), 3);
  ExpectMatchesFiniteDifferences(Small(Mask::kSharedBool, Bias::kShared), 4);
}

TEST(EvoAttention, ReferenceWithTransposedStridesMatchesFiniteDifferences) {
  EvoAttention problem = Small(Mask::kBool, Bias::kPerBatch);
  problem.ending_node = true;
  ExpectMatchesFiniteDifferences(problem, 5);
}

TEST(EvoAttention, MatchesReference) {
  ForEachTarget([] {
    for (const Case& c : LoadCases("evo_attention")) {
      SCOPED_TRACE(c.text);
      ExpectMatchesReference(EvoAttention(c), {}, 6);
    }
  });
}

TEST(EvoAttention, MatchesReferenceInHalfPrecision) {
  ForEachTarget([] {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const bool wide : {false, true}) {
        SCOPED_TRACE(Name(dtype));
        EvoAttention problem = Medium(Mask::kBool, Bias::kPerBatch);
        problem.wide_bias = wide;
        ExpectMatchesReference(problem, {.dtype = dtype, .gap = 3}, 7);
        problem.ending_node = true;
        problem.mask = wide ? Mask::kSharedAdditiveWide : Mask::kAdditive;
        ExpectMatchesReference(problem, {.dtype = dtype}, 8);
      }
    }
  });
}

TEST(EvoAttention, EveryHeadDimension) {
  for (std::int64_t dim = 1; dim <= 128; dim += dim < 8 ? 7 : 8) {
    SCOPED_TRACE(dim);
    EvoAttention problem = Small(Mask::kBool, Bias::kPerBatch);
    problem.queries = 19;
    problem.dim = dim;
    ExpectMatchesReference(problem, {.gap = 5}, 9);
  }
}

TEST(EvoAttention, EveryMaskAndBias) {
  for (int mask = 0; mask < 5; ++mask) {
    for (int bias = 0; bias < 3; ++bias) {
      for (const bool heads_last : {false, true}) {
        SCOPED_TRACE(testing::Message() << mask << " " << bias << " " << heads_last);
        EvoAttention problem = Medium(static_cast<Mask>(mask), static_cast<Bias>(bias));
        problem.bias_heads_last = heads_last;
        ExpectMatchesReference(problem, {.gap = 1}, 10);
      }
    }
  }
}

TEST(EvoAttention, ComputesAnySubsetOfGradients) {
  const std::vector<std::string> names{"dq", "dk", "dv", "dbias"};
  for (unsigned subset = 1; subset < 16; ++subset) {
    SCOPED_TRACE(subset);
    RunOptions options;
    for (unsigned n = 0; n < 4; ++n) {
      if ((subset >> n & 1) != 0) options.only_gradients.push_back(names[n]);
    }
    ExpectMatchesReference(Medium(Mask::kBool, Bias::kShared), options, 11);
  }
}

TEST(EvoAttention, AnyNumberOfThreads) {
  const int before = GetNumThreads();
  for (const int threads : {1, 2, 3, 8, 33}) {
    SCOPED_TRACE(threads);
    SetNumThreads(threads);
    for (const Bias bias : {Bias::kNone, Bias::kPerBatch, Bias::kShared}) {
      ExpectMatchesReference(Medium(Mask::kBool, bias), {}, 12);
      ExpectRepeatable(Medium(Mask::kBool, bias), {}, 12);
    }
  }
  SetNumThreads(before);
}

TEST(EvoAttention, IsRepeatable) {
  for (const Case& c : LoadCases("evo_attention")) {
    SCOPED_TRACE(c.text);
    ExpectRepeatable(EvoAttention(c), {}, 13);
    ExpectRepeatable(EvoAttention(c), {.dtype = DType::kBFloat16}, 13);
  }
}

TEST(EvoAttention, RowsWithoutKeysGiveZeros) {
  for (const Mask mask : {Mask::kBool, Mask::kAdditive}) {
    for (const DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16}) {
      SCOPED_TRACE(Name(dtype));
      const EvoAttention problem = Medium(mask, Bias::kPerBatch);
      Results inputs = MakeInputs(problem, dtype, 14);
      const bool additive = mask == Mask::kAdditive;
      for (double& value : inputs["mask"]) value = additive ? -kInfinity : 0;
      for (const auto& [name, values] : Compute(problem, inputs, {.dtype = dtype})) {
        const double expected = name == "lse" ? kInfinity : 0;
        EXPECT_EQ(values, Values(values.size(), expected)) << name;
      }
    }
  }
}

// A key whose bias is -inf for one query only, and a query without any key by its bias.
TEST(EvoAttention, BiasMayBeMinusInfinity) {
  const EvoAttention problem = Medium(Mask::kNone, Bias::kShared);
  Results inputs = MakeInputs(problem, DType::kFloat32, 15);
  const auto keys = static_cast<std::size_t>(problem.keys);
  Values& bias = inputs["bias"];
  for (std::size_t j = 0; j < keys; ++j) bias[5 * keys + j] = -kInfinity;
  for (std::size_t j = 0; j < keys; j += 2) bias[7 * keys + j] = -kInfinity;
  const Results expected = Compute(problem, inputs, {.dtype = DType::kFloat64});
  for (const auto& [name, values] : Compute(problem, inputs, {})) {
    EXPECT_LE(RelativeError(values, expected.at(name)), 1e-5) << name;
  }
}

// Scores of several hundred: exponentials would overflow without the running maximum.
TEST(EvoAttention, LargeScoresStayFinite) {
  EvoAttention problem = Medium(Mask::kBool, Bias::kPerBatch);
  problem.keys = 700;
  Results inputs = MakeInputs(problem, DType::kFloat32, 16);
  for (double& value : inputs["q"]) value *= 64;
  const Results expected = Compute(problem, inputs, {.dtype = DType::kFloat64});
  for (const auto& [name, values] : Compute(problem, inputs, {})) {
    EXPECT_LE(RelativeError(values, expected.at(name)), 2e-4) << name;
  }
}

TEST(EvoAttention, NanStaysVisible) {
  const EvoAttention problem = Medium(Mask::kNone, Bias::kNone);
  Results inputs = MakeInputs(problem, DType::kFloat32, 17);
  inputs["q"][0] = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : {DType::kFloat64, DType::kFloat32}) {
    const Results results = Compute(problem, inputs, {.dtype = dtype});
    for (const char* name : {"y", "lse", "dq", "dk", "dv"}) {
      EXPECT_TRUE(std::isnan(results.at(name)[0])) << name << " in " << Name(dtype);
    }
  }
}

}  // namespace
}  // namespace megafold::test
