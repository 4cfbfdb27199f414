// The operators as C++ models call them: values and gradients against at:: compositions, autocast,
// errors. tests/python holds them against fp64 at many shapes.
#include "torch_ops/ops.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "megafold/core/error.h"
#include "torch_ops/composed.h"

namespace megafold::torch_ops {
namespace {

at::Tensor Leaf(at::IntArrayRef sizes, double scale = 1) {
  return (scale * torch::randn(sizes)).requires_grad_();
}

at::Tensor Normalise(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta) {
  return at::layer_norm(x, {x.size(-1)}, gamma, beta);
}

// Compares two results of the same leaves, and their gradients under one random cotangent.
void ExpectSame(const at::Tensor& ours, const at::Tensor& expected,
                const std::vector<at::Tensor>& leaves) {
  EXPECT_TRUE(at::allclose(ours, expected, 1e-4, 1e-5));
  const at::Tensor cotangent = torch::randn_like(expected);
  const auto got = torch::autograd::grad({ours}, leaves, {cotangent});
  const auto want = torch::autograd::grad({expected}, leaves, {cotangent});
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    EXPECT_TRUE(at::allclose(got[i], want[i], 1e-4, 1e-4)) << "gradient of operand " << i;
  }
}

TEST(TorchOps, LayerNormLinear) {
  const at::Tensor x = Leaf({2, 5, 24}), gamma = Leaf({24}), beta = Leaf({24});
  const at::Tensor weight = Leaf({10, 24}, 0.2), bias = Leaf({10});
  ExpectSame(LayerNormLinear(x, gamma, beta, weight, bias),
             at::linear(Normalise(x, gamma, beta), weight, bias), {x, gamma, beta, weight, bias});
  ExpectSame(LayerNormLinear(x, std::nullopt, std::nullopt, weight, std::nullopt),
             at::linear(Normalise(x, {}, {}), weight), {x, weight});
}

TEST(TorchOps, Transition) {
  const at::Tensor x = Leaf({3, 7, 16}), gamma = Leaf({16}), beta = Leaf({16});
  const at::Tensor g1 = Leaf({64, 16}, 0.25), g2 = Leaf({64, 16}, 0.25), w2 = Leaf({16, 64}, 0.12);
  const at::Tensor u = Normalise(x, gamma, beta);
  ExpectSame(Transition(x, gamma, beta, g1, g2, w2),
             at::linear(at::silu(at::linear(u, g1)) * at::linear(u, g2), w2),
             {x, gamma, beta, g1, g2, w2});
}

TEST(TorchOps, TriangleMultiplication) {
  const at::Tensor x = Leaf({1, 6, 6, 8});
  const at::Tensor mask = torch::rand({1, 6, 6}) < 0.8;
  const at::Tensor gi = Leaf({8}), bi = Leaf({8}), go = Leaf({12}), bo = Leaf({12});
  const at::Tensor ap = Leaf({12, 8}, 0.3), ag = Leaf({12, 8}, 0.3), bp = Leaf({12, 8}, 0.3),
                   bg = Leaf({12, 8}, 0.3), op = Leaf({8, 12}, 0.3), og = Leaf({8, 8}, 0.3);
  for (const bool outgoing : {true, false}) {
    const at::Tensor z = Normalise(x, gi, bi), m = mask.unsqueeze(-1);
    const at::Tensor a = m * at::sigmoid(at::linear(z, ag)) * at::linear(z, ap);
    const at::Tensor b = m * at::sigmoid(at::linear(z, bg)) * at::linear(z, bp);
    const at::Tensor t = at::einsum(outgoing ? "bikc,bjkc->bijc" : "bkic,bkjc->bijc", {a, b});
    const at::Tensor expected =
        at::sigmoid(at::linear(z, og)) * at::linear(Normalise(t, go, bo), op);
    ExpectSame(TriangleMultiplication(x, mask, outgoing, gi, bi, ap, ag, bp, bg, go, bo, op, og),
               expected, {x, gi, bi, ap, ag, bp, bg, go, bo, op, og});
  }
}

// What a device without kernels computes with takes the mixed types that the kernels take.
TEST(TorchOps, CompositionsTakeMixedTypes) {
  const at::Tensor x = torch::randn({1, 5, 5, 16}).to(at::kBFloat16);
  const at::Tensor gamma = torch::randn(16), beta = torch::randn(16), bias = torch::randn(8);
  const auto weight = [](std::int64_t out, std::int64_t in) {
    return (0.3 * torch::randn({out, in})).to(at::kBFloat16);
  };
  const auto expect_near = [](const at::Tensor& composed, const at::Tensor& fused) {
    EXPECT_EQ(composed.scalar_type(), at::kBFloat16);
    const at::Tensor error = composed.to(at::kFloat) - fused.to(at::kFloat);
    EXPECT_LT((error.norm() / fused.to(at::kFloat).norm()).item<double>(), 1e-2);
  };
  const at::Tensor w = weight(8, 16), g1 = weight(32, 16), g2 = weight(32, 16), w2 = weight(16, 32);
  expect_near(composed::LayerNormLinear(x, gamma, beta, w, bias, 1e-5),
              LayerNormLinear(x, gamma, beta, w, bias));
  expect_near(composed::Transition(x, gamma, beta, g1, g2, w2, 1e-5),
              Transition(x, gamma, beta, g1, g2, w2));
  const at::Tensor ap = weight(16, 16), ag = weight(16, 16), bp = weight(16, 16),
                   bg = weight(16, 16), op = weight(16, 16), og = weight(16, 16);
  for (const at::Tensor& mask : {torch::rand({1, 5, 5}) < 0.8, torch::rand({1, 5, 5})}) {
    expect_near(
        composed::TriangleMultiplication(x, mask, true, gamma, beta, ap, ag, bp, bg, gamma, beta,
                                         op, og, 1e-5),
        TriangleMultiplication(x, mask, true, gamma, beta, ap, ag, bp, bg, gamma, beta, op, og));
  }
}

// As above, with a query that sees no key; gradients too, for the composition's are PyTorch's own.
TEST(TorchOps, AttentionAsAComposition) {
  const at::Tensor q = Leaf({2, 3, 5, 2, 8}), k = Leaf({2, 3, 7, 2, 8}), v = Leaf({2, 3, 7, 2, 8});
  const at::Tensor bias = Leaf({1, 1, 2, 5, 7});
  at::Tensor seen = torch::rand({2, 3, 1, 1, 7}) < 0.7;
  seen[1][2].fill_(false);
  const at::Tensor additive =
      torch::randn({2, 3, 1, 1, 7})
          .masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
  for (const at::Tensor& mask : {seen, additive}) {
    ExpectSame(composed::EvoAttention(q, k, v, mask, bias, 0.3),
               EvoAttention(q, k, v, mask, bias, 0.3), {q, k, v, bias});
  }
  const auto half = [](const at::Tensor& x) { return x.detach().to(at::kBFloat16); };
  const at::Tensor composition =
      composed::EvoAttention(half(q), half(k), half(v), seen, bias.detach(), 0.3);
  EXPECT_EQ(composition.scalar_type(), at::kBFloat16);
  EXPECT_FALSE(composition.isnan().any().item<bool>());
}

TEST(TorchOps, TheCpuHasEveryKernel) {
  EXPECT_TRUE(OperatorsWithoutKernel(at::kCPU).empty());
  for (const ops::Operator op : ops::kOperators) {
    EXPECT_FALSE(LacksKernel(op, at::ones({1}))) << ops::Name(op);
    EXPECT_FALSE(LacksKernel(op, at::ones({1}, at::kMeta))) << ops::Name(op);
  }
}

TEST(TorchOps, EvoAttention) {
  const at::Tensor q = Leaf({2, 3, 5, 2, 8}), k = Leaf({2, 3, 7, 2, 8}), v = Leaf({2, 3, 7, 2, 8});
  const at::Tensor mask = 3 * torch::randn({2, 3, 1, 1, 7}), bias = Leaf({1, 1, 2, 5, 7});
  const at::Tensor scores =
      at::matmul(q.transpose(2, 3), k.transpose(2, 3).transpose(-1, -2)) / std::sqrt(8.0) + bias +
      mask;
  const at::Tensor expected =
      at::matmul(at::softmax(scores, -1), v.transpose(2, 3)).transpose(2, 3);
  ExpectSame(EvoAttention(q, k, v, mask, bias), expected, {q, k, v, bias});
}

TEST(TorchOps, AutocastCastsTheStorageOperandsOnly) {
  const at::Tensor x = Leaf({5, 24}), gamma = Leaf({24}), weight = Leaf({10, 24});
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const at::Tensor y = LayerNormLinear(x, gamma, std::nullopt, weight, std::nullopt);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(y, LayerNormLinear(x.to(at::kBFloat16), gamma, std::nullopt,
                                           weight.to(at::kBFloat16), std::nullopt)));
  y.sum().backward();
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

TEST(TorchOps, ErrorsAreMegafoldErrors) {
  const at::Tensor x = torch::randn({5, 24}), weight = torch::randn({10, 23});
  try {
    LayerNormLinear(x, std::nullopt, std::nullopt, weight, std::nullopt);
    FAIL() << "a weight of the wrong width was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("weight has shape [10, 23], expected [10, 24]"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace megafold::torch_ops
