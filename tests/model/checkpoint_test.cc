// Activation checkpointing: the same gradients, fewer tensors kept, autocast restored.
#include "model/checkpoint.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include "model/random.h"

namespace megafold::model {
namespace {

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

// One block with a parameter, an input without gradient and an output nobody uses.
struct Result {
  at::Tensor out, dx, dw;
  int calls = 0;
};
Result RunBlock(bool enabled, bool input_needs_gradient = true) {
  Result result;
  const at::Tensor w = Normal({4, 4}, 1).requires_grad_();
  const at::Tensor x = Normal({3, 4}, 2).requires_grad_(input_needs_gradient);
  const at::Tensor constant = Normal({3, 4}, 3);
  int calls = 0;
  const Tensors out = Checkpoint(enabled,
                                 [&](const Tensors& inputs) {
                                   ++calls;
                                   const at::Tensor h =
                                       at::tanh(at::linear(inputs[0] * inputs[1], w));
                                   return Tensors{h, h.square()};
                                 },
                                 {x * 2, constant}, {w});
  out[0].sin().sum().backward();
  result.out = out[0].detach();
  result.dx = x.grad();
  result.dw = w.grad();
  result.calls = calls;
  return result;
}

TEST(CheckpointTest, SameValuesAndGradients) {
  const Result plain = RunBlock(false), kept = RunBlock(true);
  EXPECT_EQ(plain.calls, 1);
  EXPECT_EQ(kept.calls, 2);
  EXPECT_TRUE(kept.out.equal(plain.out));
  EXPECT_TRUE(kept.dx.equal(plain.dx));
  EXPECT_TRUE(kept.dw.equal(plain.dw));
}

// The first block of a model: no input asks for a gradient, its parameters do.
TEST(CheckpointTest, ParametersAloneGetGradients) {
  const Result kept = RunBlock(true, false);
  EXPECT_TRUE(kept.dw.equal(RunBlock(false, false).dw));
  EXPECT_FALSE(kept.dx.defined());
}

TEST(CheckpointTest, NothingIsRecordedWithoutGradients) {
  const at::NoGradGuard no_grad;
  int calls = 0;
  const Tensors out = Checkpoint(true,
                                 [&](const Tensors& inputs) {
                                   ++calls;
                                   return inputs;
                                 },
                                 {Normal({2}, 1)}, {});
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(out[0].requires_grad());
}

TEST(CheckpointTest, BackwardRestoresAutocast) {
  const at::Tensor w = Normal({4, 4}, 1).requires_grad_();
  std::vector<at::ScalarType> seen;
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const Tensors out = Checkpoint(true,
                                 [&](const Tensors& inputs) {
                                   const at::Tensor h = at::linear(inputs[0], w);
                                   seen.push_back(h.scalar_type());
                                   return Tensors{h};
                                 },
                                 {Normal({3, 4}, 2)}, {w});
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  out[0].to(at::kFloat).sum().backward();
  EXPECT_EQ(seen, (std::vector<at::ScalarType>{at::kBFloat16, at::kBFloat16}));
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  EXPECT_TRUE(w.grad().defined());
}

}  // namespace
}  // namespace megafold::model
