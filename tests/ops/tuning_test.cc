// Tuned choices: what they change, what they leave alone, and what is refused.
#include "megafold/ops/tuning.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "megafold/core/error.h"
#include "megafold/ops/evo_attention.h"
#include "megafold/ops/layer_norm_linear.h"
#include "megafold/ops/transition.h"
#include "megafold/ops/triangle_multiplication.h"
#include "ops/problem_class.h"

namespace megafold::ops {
namespace {

constexpr Device kCpu{DeviceType::kCpu, 0};

// Leaves no choice behind for the tests that follow.
class TuningTest : public ::testing::Test {
 protected:
  void TearDown() override { SetTunedChoices(kCpu, {}); }
};

// One small attention in memory of its own.
struct Attention {
  explicit Attention(std::int64_t keys = 37) {
    const auto make = [this](std::initializer_list<std::int64_t> sizes) {
      std::vector<float>& memory = storage.emplace_back(static_cast<std::size_t>(
          std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>())));
      for (std::size_t i = 0; i < memory.size(); ++i) {
        memory[i] = std::sin(static_cast<float>(i * 7 + storage.size() * 13));
      }
      return MakeView(memory.data(), DType::kFloat32, sizes);
    };
    storage.reserve(12);
    forward.q = make({1, 3, 21, 2, 16});
    forward.k = make({1, 3, keys, 2, 16});
    forward.v = make({1, 3, keys, 2, 16});
    forward.bias = make({1, 1, 2, 21, keys});
    forward.out = make({1, 3, 21, 2, 16});
    forward.lse = make({1, 3, 2, 21});
    backward = {.q = forward.q,
                .k = forward.k,
                .v = forward.v,
                .mask = {},
                .bias = forward.bias,
                .scale = 1,
                .out = forward.out,
                .lse = forward.lse,
                .dout = make({1, 3, 21, 2, 16}),
                .dq = make({1, 3, 21, 2, 16}),
                .dk = make({1, 3, keys, 2, 16}),
                .dv = make({1, 3, keys, 2, 16}),
                .dbias = make({1, 1, 2, 21, keys})};
  }
  std::vector<float> Run() {
    std::vector<std::byte> scratch(EvoAttentionForwardWorkspace(forward) + 256);
    EvoAttentionForward(forward, {scratch.data(), scratch.size()}, {});
    return storage[4];
  }
  // Scratch that backward asks for: the vectorised implementation needs some, the reference none.
  std::size_t Workspace() const { return EvoAttentionBackwardWorkspace(backward); }

  std::vector<std::vector<float>> storage;
  EvoAttentionForwardArgs forward;
  EvoAttentionBackwardArgs backward;
};

TEST(SizeClass, IsTheNextPowerOfTwoOrOneAndAHalf) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> expected = {
      {-1, 0},    {0, 0},     {1, 1},     {2, 2},     {3, 3},     {4, 4},     {5, 6},
      {7, 8},     {9, 12},    {13, 16},   {17, 24},   {48, 48},   {49, 64},   {257, 384},
      {384, 384}, {385, 512}, {512, 512}, {513, 768}, {768, 768}, {769, 1024}};
  for (const auto& [size, rounded] : expected) EXPECT_EQ(SizeClass(size), rounded) << size;
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(SizeClass(kLargest), kLargest);
  for (std::int64_t size = 1; size < 5000; ++size) {
    EXPECT_GE(SizeClass(size), size);
    EXPECT_EQ(SizeClass(SizeClass(size)), SizeClass(size));
  }
}

TEST(ProblemClass, RefusesAnEndlessName) {
  ProblemClass problem("op", Direction::kForward, DType::kFloat32);
  const std::string word(300, 'x');
  problem.Word("a", word.c_str());
  EXPECT_THROW(problem.Word("b", word.c_str()), Error);
}

TEST_F(TuningTest, CandidatesNameTheClassAndWhoAccepts) {
  const Attention attention;
  const TuningCandidates forward = Candidates(attention.forward);
  EXPECT_EQ(forward.problem,
            "evo_attention forward float32 batch=1 rows=3 queries=24 keys=48 heads=2 dim=16 "
            "bias=float32 biases=1 mask=no");
  EXPECT_EQ(forward.implementations, (std::vector<std::string>{"cpu simd", "cpu ref"}));
  const TuningCandidates backward = Candidates(attention.backward);
  EXPECT_EQ(backward.problem.substr(0, 31), "evo_attention backward float32 ");
  EXPECT_NE(backward.problem.find(" dbias=yes"), std::string::npos);
  EvoAttentionBackwardArgs fewer = attention.backward;
  fewer.dbias = {};
  EXPECT_NE(Candidates(fewer).problem.find(" dbias=no"), std::string::npos);
  // float64 is the reference's alone.
  EvoAttentionForwardArgs wrong = attention.forward;
  wrong.k.dtype = DType::kFloat64;
  EXPECT_THROW(Candidates(wrong), Error);
}

TEST_F(TuningTest, AChoiceTakesEffectForItsClassAlone) {
  Attention attention, same_class(48), other(49);
  ASSERT_GT(attention.Workspace(), 0U) << "backward's default must differ from the reference in "
                                          "its workspace, else this test sees nothing";
  const std::vector<float> before = attention.Run();
  const TunedChoice backward{Candidates(attention.backward).problem, "cpu ref"};
  const TunedChoice forward{Candidates(attention.forward).problem, "cpu ref"};
  EXPECT_TRUE(SetTunedChoices(kCpu, std::vector{forward, backward}).empty());
  EXPECT_EQ(TunedChoices(kCpu), (std::vector{backward, forward}));
  EXPECT_EQ(attention.Workspace(), 0U);
  EXPECT_EQ(same_class.Workspace(), 0U);
  EXPECT_GT(other.Workspace(), 0U);
  const std::vector<float> reference = attention.Run();
  EXPECT_NE(before, reference) << "the two round differently";
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(before[i], reference[i], 1e-4);
  // Candidates still lists the untuned choice first.
  EXPECT_EQ(Candidates(attention.forward).implementations.front(), "cpu simd");

  EXPECT_TRUE(SetTunedChoices(kCpu, {}).empty());
  EXPECT_TRUE(TunedChoices(kCpu).empty());
  EXPECT_GT(attention.Workspace(), 0U);
  EXPECT_EQ(attention.Run(), before);
}

TEST_F(TuningTest, ChoicesAreTiedToADevice) {
  Attention attention;
  const TunedChoice choice{Candidates(attention.backward).problem, "cpu ref"};
  SetTunedChoices({DeviceType::kCpu, 1}, std::vector{choice});
  EXPECT_TRUE(TunedChoices(kCpu).empty());
  EXPECT_GT(attention.Workspace(), 0U);
  SetTunedChoices({DeviceType::kCpu, 1}, {});
  // An implementation of one device is unknown on another.
  const auto refused = SetTunedChoices({DeviceType::kCuda, 0}, std::vector{choice});
  ASSERT_EQ(refused.size(), 1U);
  EXPECT_NE(refused[0].find("no implementation 'cpu ref' on cuda"), std::string::npos)
      << refused[0];
  EXPECT_THROW(SetTunedChoices({DeviceType::kCpu, -1}, {}), Error);
}

TEST_F(TuningTest, UnknownNamesAreRefusedOneByOne) {
  const Attention attention;
  const std::string known = Candidates(attention.backward).problem;
  const auto refused =
      SetTunedChoices(kCpu, std::vector<TunedChoice>{{known, "cpu warp"},
                                                     {"evo_attention sideways float32", "cpu ref"},
                                                     {"softmax forward float32", "cpu ref"},
                                                     {"", "cpu ref"},
                                                     {known, "cpu ref"}});
  ASSERT_EQ(refused.size(), 4U);
  EXPECT_NE(refused[0].find("no implementation 'cpu warp' on cpu"), std::string::npos);
  EXPECT_NE(refused[1].find("'sideways' is no direction"), std::string::npos);
  EXPECT_NE(refused[2].find("no operator is called 'softmax'"), std::string::npos);
  EXPECT_NE(refused[3].find("no operator is called ''"), std::string::npos);
  EXPECT_EQ(attention.Workspace(), 0U) << "the good one holds";
}

TEST_F(TuningTest, AChoiceThatDoesNotAcceptTheProblemIsPassedOver) {
  // The class is float32's; a float64 problem of it does not exist, so refusal is provoked with an
  // entry for float64, which the vectorised implementation does not take.
  Attention attention;
  EvoAttentionForwardArgs wide = attention.forward;
  std::vector<std::vector<double>> memory;
  memory.reserve(6);
  for (TensorView* view : {&wide.q, &wide.k, &wide.v, &wide.bias, &wide.out, &wide.lse}) {
    view->dtype = DType::kFloat64;
    view->data = memory.emplace_back(static_cast<std::size_t>(view->numel()), 0.5).data();
  }
  const TuningCandidates candidates = Candidates(wide);
  ASSERT_EQ(candidates.implementations, std::vector<std::string>{"cpu ref"});
  EXPECT_TRUE(
      SetTunedChoices(kCpu, std::vector<TunedChoice>{{candidates.problem, "cpu simd"}}).empty());
  EXPECT_EQ(EvoAttentionForwardWorkspace(wide), 0U);
  EvoAttentionForward(wide, {}, {});
  EXPECT_NEAR(memory[4][0], 0.5, 1e-12);
}

TEST(DescribeDevice, NamesTheProcessorAndAdmitsAMissingBackend) {
  EXPECT_FALSE(DescribeDevice(kCpu).name.empty());
  EXPECT_TRUE(DescribeDevice({DeviceType::kHip, 0}).name.empty());
}

}  // namespace
}  // namespace megafold::ops
