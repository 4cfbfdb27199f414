// The shared layers: fused against plain operators, masks, shapes that pass the model's cases,
// initial weights.
#include "model/layers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "megafold/core/error.h"
#include "model/pairformer.h"
#include "model/random.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

using testing::RelativeError;

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}
at::Tensor Mask(at::IntArrayRef shape, std::uint64_t seed) {
  at::Tensor mask = at::rand(shape, MakeGenerator(at::kCPU, seed), at::kFloat).lt(0.8);
  mask.select(-1, 0).fill_(true);  // no row without keys
  return mask;
}

using Layer = std::function<at::Tensor(Ops ops, torch::nn::Module& holder, const at::Tensor& x)>;

// Output, gradient of the input and of every parameter, on the weights of `seed`.
struct Pass {
  at::Tensor out, dx;
  std::vector<std::pair<std::string, at::Tensor>> dparameters;
};
Pass RunLayer(Ops ops, const Layer& layer, const at::Tensor& x) {
  struct Holder : torch::nn::Module {
  } holder;
  Pass pass;
  const at::Tensor input = x.detach().requires_grad_();
  pass.out = layer(ops, holder, input);
  const at::Tensor cotangent = Normal(pass.out.sizes(), 77);
  (pass.out * cotangent).sum().backward();
  pass.dx = input.grad();
  for (const auto& item : holder.named_parameters()) {
    EXPECT_TRUE(item.value().grad().defined()) << item.key();
    pass.dparameters.emplace_back(item.key(), item.value().grad());
  }
  return pass;
}

void ExpectFusedIsBaseline(const Layer& layer, const at::Tensor& x) {
  const Pass plain = RunLayer(Ops::kBaseline, layer, x);
  const Pass fused = RunLayer(Ops::kFused, layer, x);
  EXPECT_GT(plain.out.abs().max().item<double>(), 0.01);
  EXPECT_LT(RelativeError(fused.out, plain.out), 1e-5);
  EXPECT_LT(RelativeError(fused.dx, plain.dx), 1e-4);
  ASSERT_EQ(fused.dparameters.size(), plain.dparameters.size());
  for (std::size_t i = 0; i < plain.dparameters.size(); ++i) {
    EXPECT_EQ(fused.dparameters[i].first, plain.dparameters[i].first);
    if (testing::HasNoEffect(plain.dparameters[i].first)) continue;
    EXPECT_LT(RelativeError(fused.dparameters[i].second, plain.dparameters[i].second), 1e-4)
        << plain.dparameters[i].first;
  }
}

template <typename M>
M Randomised(torch::nn::Module& holder, M module) {
  holder.register_module("layer", module);
  testing::Randomise(holder, 5);
  return module;
}

TEST(LayersTest, LayerNormLinear) {
  ExpectFusedIsBaseline(
      [](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
        return Randomised(holder, LayerNormLinear(ops, 12, 7, LinearOptions{.bias = true}))(x);
      },
      Normal({2, 3, 5, 12}, 1));
}

TEST(LayersTest, Transition) {
  ExpectFusedIsBaseline(
      [](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
        return Randomised(holder, Transition(ops, 12, 4))(x);
      },
      Normal({2, 7, 12}, 2));
}

TEST(LayersTest, TriangleMultiplication) {
  for (const bool outgoing : {true, false}) {
    ExpectFusedIsBaseline(
        [&](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
          return Randomised(holder, TriangleMultiplication(ops, 12, 8, outgoing))(
              x, Mask({2, 7, 7}, 3));
        },
        Normal({2, 7, 7, 12}, 4));
  }
}

TEST(LayersTest, TriangleAttention) {
  for (const TriangleNode node : {TriangleNode::kStarting, TriangleNode::kEnding}) {
    at::Tensor mask = Mask({2, 7, 7}, 5);
    mask.select(1, 0).fill_(true);  // rows are keys around the ending node
    ExpectFusedIsBaseline(
        [&](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
          return Randomised(holder, TriangleAttention(ops, 12, 3, node))(x, mask);
        },
        Normal({2, 7, 7, 12}, 6));
  }
}

// Algorithm 15 is Algorithm 14 on the transposed pair representation.
TEST(LayersTest, EndingNodeIsStartingNodeTransposed) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    TriangleAttention starting(ops, 12, 3, TriangleNode::kStarting);
    TriangleAttention ending(ops, 12, 3, TriangleNode::kEnding);
    testing::Randomise(*starting, 8);
    testing::Randomise(*ending, 8);
    const at::Tensor z = Normal({2, 6, 6, 12}, 9);
    at::Tensor mask = Mask({2, 6, 6}, 10);
    mask.select(1, 0).fill_(true);
    const at::Tensor transposed = starting(z.transpose(1, 2).contiguous(), mask.transpose(1, 2));
    EXPECT_LT(RelativeError(ending(z, mask), transposed.transpose(1, 2)), 1e-5);
  }
}

TEST(LayersTest, AttentionPairBias) {
  for (const std::int64_t c_s : {0, 10}) {
    ExpectFusedIsBaseline(
        [&](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
          const AttentionPairBiasOptions options{.c_a = 12, .c_z = 6, .heads = 3, .c_s = c_s};
          AttentionPairBias layer = Randomised(holder, AttentionPairBias(ops, options));
          const at::Tensor s = c_s > 0 ? Normal({2, 3, 7, c_s}, 11) : at::Tensor();
          return layer(x, s, Normal({2, 7, 7, 6}, 12), Mask({2, 7}, 13));
        },
        Normal({2, 3, 7, 12}, 14));
  }
}

TEST(LayersTest, OuterProductMean) {
  ExpectFusedIsBaseline(
      [](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
        return Randomised(holder, OuterProductMean(ops, 12, 6, 4))(x, Mask({2, 5, 7}, 15));
      },
      Normal({2, 5, 7, 12}, 16));
}

// The mean of Algorithm 9, term by term.
TEST(LayersTest, OuterProductMeanIsTheMeanOfOuterProducts) {
  OuterProductMean layer(Ops::kBaseline, 4, 3, 2);
  testing::Randomise(*layer, 20);
  const at::Tensor m = Normal({1, 3, 2, 4}, 21);
  const at::Tensor mask = at::tensor({1, 1, 1, 0, 1, 1}).view({1, 3, 2}).to(at::kBool);
  const auto p = layer->named_parameters();
  const at::Tensor u = at::layer_norm(m, {4}, p["norm.weight"], p["norm.bias"]);
  const at::Tensor a = at::linear(u, p["linear_a.weight"]), b = at::linear(u, p["linear_b.weight"]);
  at::Tensor sum = at::zeros({2, 2});
  for (const int row : {0, 2})
    sum = sum + at::outer(a[0][row][0], b[0][row][1]);  // row 1 lacks token 1
  const at::Tensor expected =
      at::linear(sum.flatten(), p["linear_out.weight"], p["linear_out.bias"]) / (2 + 1e-3);
  EXPECT_LT(RelativeError(layer(m, mask)[0][0][1], expected), 1e-5);
}

TEST(LayersTest, MsaPairWeightedAveraging) {
  ExpectFusedIsBaseline(
      [](Ops ops, torch::nn::Module& holder, const at::Tensor& x) {
        return Randomised(holder, MsaPairWeightedAveraging(ops, 12, 6, 2, 4))(
            x, Normal({2, 7, 7, 6}, 17), Mask({2, 7, 7}, 18));
      },
      Normal({2, 5, 7, 12}, 19));
}

TEST(LayersTest, HeadsMustDivideTheWidth) {
  EXPECT_THROW(TriangleAttention(Ops::kFused, 10, 4, TriangleNode::kStarting), Error);
  EXPECT_THROW(
      AttentionPairBias(Ops::kFused, AttentionPairBiasOptions{.c_a = 10, .c_z = 4, .heads = 4}),
      Error);
}

TEST(LayersTest, DropoutKeepsTheMeanAndNeedsAGenerator) {
  EXPECT_FALSE(DropoutMask({4}, 0.25, at::Generator(), at::kFloat).defined());
  EXPECT_FALSE(DropoutMask({4}, 0, MakeGenerator(at::kCPU, 1), at::kFloat).defined());
  const at::Tensor mask = DropoutMask({100000}, 0.25, MakeGenerator(at::kCPU, 1), at::kFloat);
  EXPECT_NEAR(mask.mean().item<double>(), 1, 0.01);
  EXPECT_NEAR(mask.eq(0).to(at::kFloat).mean().item<double>(), 0.25, 0.01);
}

TEST(InitTest, WeightsFollowTheirDistribution) {
  Linear lecun(400, 300), he(400, 300, LinearOptions{.init = Init::kHe});
  Linear gate(4, 3, LinearOptions{.init = Init::kGating, .bias = true, .bias_value = -2});
  EXPECT_TRUE(lecun->weight.isnan().all().item<bool>()) << "an uninitialised layer must be loud";
  for (const Linear& layer : {lecun, he, gate}) {
    Linear copy = layer;
    copy->Initialize(MakeGenerator(at::kCPU, 3));
  }
  const double std = 1 / std::sqrt(400.0);
  EXPECT_NEAR(lecun->weight.std().item<double>(), std, 0.01 * std);
  EXPECT_NEAR(he->weight.std().item<double>(), std * std::sqrt(2.0), 0.015 * std);
  EXPECT_LT(lecun->weight.abs().max().item<double>(), 2.3 * std);
  EXPECT_EQ(gate->weight.abs().max().item<double>(), 0);
  EXPECT_TRUE(gate->bias.eq(-2).all().item<bool>());
}

TEST(InitTest, SeedAndNameDecide) {
  PairformerConfig config{
      .blocks = 1, .single_heads = 2, .pair_heads = 2, .transition_expansion = 2};
  PairformerBlock one(Ops::kBaseline, 8, 4, config), same(Ops::kFused, 8, 4, config),
      other(Ops::kBaseline, 8, 4, config);
  InitWeights(*one, 1);
  InitWeights(*same, 1);
  InitWeights(*other, 2);
  const auto a = one->named_parameters(), b = same->named_parameters(),
             c = other->named_parameters();
  std::int64_t differing = 0, zero = 0;
  for (const auto& item : a) {
    ASSERT_TRUE(b.contains(item.key())) << item.key();
    EXPECT_TRUE(item.value().equal(b[item.key()])) << item.key();
    differing += item.value().equal(c[item.key()]) ? 0 : 1;
    zero += item.value().eq(0).all().item<bool>() ? 1 : 0;
  }
  EXPECT_GT(differing, 10);
  EXPECT_EQ(zero, 27);
  EXPECT_FALSE(a["pair_stack.tri_att_start.linear_q.weight"].equal(
      a["pair_stack.tri_att_start.linear_k.weight"]));
}

TEST(InitTest, PaperSizes) {
  const ModelConfig paper;
  const PairformerBlock block(Ops::kFused, paper.c_s, paper.c_z, paper.pairformer);
  EXPECT_EQ(CountParameters(*block), 3070848);
  ModelConfig shallow;
  shallow.pairformer.blocks = 2;
  EXPECT_EQ(CountParameters(*PairformerStack(shallow)), 2 * 3070848);
  EXPECT_EQ(paper.pairformer.blocks * CountParameters(*block), 147400704);
}

}  // namespace
}  // namespace megafold::model
