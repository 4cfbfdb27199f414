// The diffusion module, its training step and its sampler.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "megafold/core/error.h"
#include "model/diffusion_sampler.h"
#include "model/random.h"
#include "tests/model/live_parameters.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

using testing::LiveParameters;
using testing::Padded;
using testing::RandomBatch;
using testing::Randomise;
using testing::RelativeError;
using testing::TinyConfig;

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

TrunkOutput RandomTrunk(const ModelConfig& config, std::int64_t batch, std::int64_t tokens) {
  return {.s_inputs = Normal({batch, tokens, config.c_s_inputs()}, 11),
          .s = Normal({batch, tokens, config.c_s}, 12),
          .z = Normal({batch, tokens, tokens, config.c_z}, 13)};
}

DiffusionModule MakeModule(const ModelConfig& config) {
  DiffusionModule module(config);
  Randomise(*module, 21);
  return module;
}

struct Case {
  explicit Case(Ops ops, bool checkpointing = true) : config(TinyConfig(ops)) {
    config.checkpointing = checkpointing;
    features = RandomBatch({.batch = 2, .tokens = 11}, 1);
    trunk = RandomTrunk(config, 2, 11);
  }
  at::Tensor Denoise(DiffusionModule& module, const at::Tensor& x, const at::Tensor& sigma) {
    const AtomLayout layout(features, config.atom);
    return module(x, sigma, module->Prepare(features, layout, trunk), layout);
  }
  ModelConfig config;
  Features features;
  TrunkOutput trunk;
};

TEST(EdmScaling, HoldsAtBothExtremes) {
  const EdmScaling s = ScalingAt(at::tensor({1e-6, 16.0, 1e6}).view({1, 3}), 16);
  const auto value = [](const at::Tensor& x, int i) { return x[0][i][0][0].item<double>(); };
  // No noise: the input is the answer. Nothing but noise: the network's is, at the data's scale.
  EXPECT_NEAR(value(s.skip, 0), 1, 1e-6);
  EXPECT_NEAR(value(s.out, 0), 1e-6, 1e-9);
  EXPECT_NEAR(value(s.in, 0), 1.0 / 16, 1e-7);
  EXPECT_NEAR(value(s.skip, 1), 0.5, 1e-6);
  EXPECT_NEAR(value(s.out, 1), 16 / std::sqrt(2.0), 1e-4);
  EXPECT_NEAR(value(s.skip, 2), 2.56e-10, 1e-13);
  EXPECT_NEAR(value(s.out, 2), 16, 1e-4);
  EXPECT_NEAR(value(s.in, 2), 1e-6, 1e-11);
}

TEST(DiffusionModule, ReturnsTheInputWithoutNoise) {
  Case c(Ops::kFused);
  DiffusionModule module = MakeModule(c.config);
  const at::Tensor x = Normal({2, 3, Get(c.features, "atom_mask").size(1), 3}, 2) * 16;
  const at::Tensor denoised = c.Denoise(module, x, at::full({2, 3}, 1e-5));
  EXPECT_LT(RelativeError(denoised, x), 1e-4);
  EXPECT_THROW(c.Denoise(module, x, at::full({2, 2}, 1.0)), Error);
}

TEST(DiffusionModule, SamplesDoNotSeeEachOther) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    Case c(ops);
    DiffusionModule module = MakeModule(c.config);
    const at::Tensor x = Normal({2, 3, Get(c.features, "atom_mask").size(1), 3}, 2) * 16;
    const at::Tensor sigma = Normal({2, 3}, 3).exp() * 8;
    const at::Tensor all = c.Denoise(module, x, sigma);
    const at::Tensor last = c.Denoise(module, x.narrow(1, 2, 1), sigma.narrow(1, 2, 1));
    EXPECT_LT(RelativeError(all.narrow(1, 2, 1), last), 1e-5);
  }
}

TEST(DiffusionModule, PaddingChangesNothing) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    Case c(ops);
    DiffusionModule module = MakeModule(c.config);
    const std::int64_t atoms = Get(c.features, "atom_mask").size(1);
    const at::Tensor x = Normal({2, 2, atoms, 3}, 2) * 16;
    const at::Tensor sigma = at::full({2, 2}, 10.0);
    const at::Tensor expected = c.Denoise(module, x, sigma);
    c.features = Padded(c.features, 4);
    const std::int64_t tokens = Get(c.features, "token_mask").size(1);
    const std::int64_t more = Get(c.features, "atom_mask").size(1) - atoms;
    TrunkOutput padded = RandomTrunk(c.config, 2, tokens);
    padded.s_inputs.narrow(1, 0, 11).copy_(c.trunk.s_inputs);
    padded.s.narrow(1, 0, 11).copy_(c.trunk.s);
    padded.z.narrow(1, 0, 11).narrow(2, 0, 11).copy_(c.trunk.z);
    c.trunk = padded;
    const at::Tensor padded_x = at::cat({x, Normal({2, 2, more, 3}, 5)}, 2);
    const at::Tensor denoised = c.Denoise(module, padded_x, sigma).narrow(2, 0, atoms);
    EXPECT_LT(RelativeError(denoised, expected), 1e-5);
  }
}

struct Step {
  DiffusionLosses losses;
  std::vector<at::Tensor> gradients;
};

Step TrainingStep(Case& c, std::uint64_t seed) {
  DiffusionModule module = MakeModule(c.config);
  c.trunk.s = c.trunk.s.detach().requires_grad_();
  c.trunk.z = c.trunk.z.detach().requires_grad_();
  c.trunk.s_inputs = c.trunk.s_inputs.detach().requires_grad_();
  const AtomLayout layout(c.features, c.config.atom);
  Step step;
  step.losses = DiffusionTrainingLoss(module, c.features, layout, c.trunk, c.config, seed);
  std::vector<at::Tensor> inputs = LiveParameters(*module);
  inputs.insert(inputs.end(), {c.trunk.s, c.trunk.z, c.trunk.s_inputs});
  step.gradients = torch::autograd::grad({step.losses.total}, inputs);
  return step;
}

TEST(DiffusionTraining, EveryParameterMovesTheLoss) {
  Case c(Ops::kFused);
  const Step step = TrainingStep(c, 5);
  EXPECT_TRUE(step.losses.total.isfinite().item<bool>());
  EXPECT_GT(step.losses.bond.item<double>(), 0);
  for (std::size_t i = 0; i < step.gradients.size(); ++i) {
    EXPECT_TRUE(step.gradients[i].isfinite().all().item<bool>()) << i;
    EXPECT_GT(step.gradients[i].abs().max().item<double>(), 0) << i;
  }
}

TEST(DiffusionTraining, FusedEqualsBaselineAndCheckpointingChangesNothing) {
  Case fused(Ops::kFused), baseline(Ops::kBaseline), stored(Ops::kBaseline, false);
  const Step a = TrainingStep(fused, 5), b = TrainingStep(baseline, 5), s = TrainingStep(stored, 5);
  EXPECT_NEAR(a.losses.total.item<double>() / b.losses.total.item<double>(), 1, 1e-4);
  EXPECT_TRUE(at::equal(b.losses.total, s.losses.total));
  for (std::size_t i = 0; i < a.gradients.size(); ++i) {
    EXPECT_LT(RelativeError(a.gradients[i], b.gradients[i]), 2e-3) << i;
    EXPECT_LT(RelativeError(s.gradients[i], b.gradients[i]), 1e-5) << i;
  }
}

TEST(DiffusionTraining, FollowsFromTheSeedAlone) {
  Case c(Ops::kFused);
  const Step a = TrainingStep(c, 5), b = TrainingStep(c, 5), other = TrainingStep(c, 6);
  EXPECT_TRUE(at::equal(a.losses.total, b.losses.total));
  EXPECT_FALSE(at::equal(a.losses.total, other.losses.total));
  for (std::size_t i = 0; i < a.gradients.size(); ++i) {
    EXPECT_TRUE(at::equal(a.gradients[i], b.gradients[i])) << i;
  }
}

TEST(Sampler, ScheduleFallsBetweenItsEnds) {
  const DiffusionConfig config;
  const std::vector<double> levels = NoiseSchedule(config, 200);
  ASSERT_EQ(levels.size(), 201u);
  EXPECT_NEAR(levels.front(), 160 * 16, 1e-9);
  EXPECT_NEAR(levels.back(), 4e-4 * 16, 1e-12);
  for (std::size_t i = 1; i < levels.size(); ++i) EXPECT_LT(levels[i], levels[i - 1]);
  EXPECT_THROW(NoiseSchedule(config, 0), Error);
}

TEST(Sampler, IsFiniteSeededAndZeroInPadding) {
  Case c(Ops::kFused);
  c.features = Padded(c.features, 4);
  c.trunk = RandomTrunk(c.config, 2, Get(c.features, "token_mask").size(1));
  DiffusionModule module = MakeModule(c.config);
  const AtomLayout layout(c.features, c.config.atom);
  const auto sample = [&](std::uint64_t seed) {
    return SampleStructures(module, c.features, layout, c.trunk, c.config, seed, 6, 2);
  };
  const at::Tensor x = sample(1);
  EXPECT_EQ(x.sizes(), (at::IntArrayRef{2, 2, layout.atoms(), 3}));
  EXPECT_FALSE(x.requires_grad());
  EXPECT_TRUE(x.isfinite().all().item<bool>());
  EXPECT_TRUE(at::equal(x, sample(1)));
  EXPECT_FALSE(at::equal(x, sample(2)));
  EXPECT_EQ(x.narrow(2, layout.atoms() - 5, 5).abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace megafold::model
