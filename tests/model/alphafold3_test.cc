// The whole model on small random batches.
#include "model/alphafold3.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "megafold/core/error.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

using testing::BatchSizes;
using testing::RandomBatch;
using testing::Randomise;
using testing::RelativeError;
using testing::TinyConfig;

AlphaFold3 RandomModel(const ModelConfig& config) {
  AlphaFold3 model(config);
  Randomise(*model, 11);
  return model;
}

struct BFloat16Autocast {
  BFloat16Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
  ~BFloat16Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
  }
};

struct Step {
  double loss = 0;
  std::map<std::string, at::Tensor> gradients;
};
Step RunStep(AlphaFold3& model, const Features& features, std::uint64_t seed = 3) {
  model->zero_grad();
  const LossOutput output = model->Loss(features, seed);
  output.total.backward();
  Step step{.loss = output.total.item<double>(), .gradients = {}};
  for (const auto& item : model->named_parameters()) {
    if (item.value().grad().defined()) step.gradients[item.key()] = item.value().grad().clone();
  }
  return step;
}

double LargestDifference(const Step& a, const Step& b, std::string* where) {
  double largest = 0;
  for (const auto& [name, gradient] : a.gradients) {
    if (testing::HasNoEffect(name)) continue;
    const auto other = b.gradients.find(name);
    const double error =
        other == b.gradients.end() ? INFINITY : RelativeError(other->second, gradient);
    if (error > largest) {
      largest = error;
      *where = name;
    }
  }
  return largest;
}

TEST(AlphaFold3Test, FusedIsBaseline) {
  const Features features = RandomBatch({.batch = 2}, 1);
  AlphaFold3 baseline = RandomModel(TinyConfig(Ops::kBaseline));
  AlphaFold3 fused = RandomModel(TinyConfig(Ops::kFused));
  const Step a = RunStep(baseline, features), b = RunStep(fused, features);
  EXPECT_NEAR(b.loss, a.loss, 1e-4 * std::abs(a.loss));
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  std::string where;
  EXPECT_LT(LargestDifference(a, b, &where), 2e-3) << where;
}

TEST(AlphaFold3Test, TermsAddUp) {
  AlphaFold3 model = RandomModel(TinyConfig(Ops::kBaseline));
  const LossOutput output = model->Loss(RandomBatch({}, 1), 3);
  std::map<std::string, double> terms;
  for (const auto& [name, value] : output.terms) {
    EXPECT_FALSE(value.requires_grad()) << name;
    terms[name] = value.item<double>();
  }
  EXPECT_NEAR(output.total.item<double>(), 4 * terms.at("diffusion") + 0.03 * terms.at("distogram"),
              1e-4 * output.total.item<double>());
  EXPECT_EQ(terms.size(), 5);
}

// No path is dead: moving any one parameter moves the loss, and so does any gradient's absence
// show.
TEST(AlphaFold3Test, EveryParameterMovesTheLoss) {
  ModelConfig config = TinyConfig(Ops::kBaseline);
  config.pairformer.blocks = 1;
  config.checkpointing = false;
  AlphaFold3 model = RandomModel(config);
  model->eval();  // all cycles: recycling too has to matter
  const Features features = RandomBatch({}, 1);
  const Step step = RunStep(model, features);
  const at::NoGradGuard no_grad;
  const double before = model->Loss(features, 3).total.item<double>();
  for (const auto& item : model->named_parameters()) {
    if (testing::HasNoEffect(item.key())) continue;
    const auto gradient = step.gradients.find(item.key());
    ASSERT_NE(gradient, step.gradients.end()) << item.key() << " has no gradient";
    EXPECT_GT(gradient->second.abs().max().item<double>(), 0) << item.key();
    at::Tensor parameter = item.value();
    const at::Tensor kept = parameter.clone();
    parameter.add_(at::randn_like(parameter), 0.5);
    EXPECT_NE(model->Loss(features, 3).total.item<double>(), before) << item.key();
    parameter.copy_(kept);
  }
  EXPECT_EQ(model->Loss(features, 3).total.item<double>(), before);
}

TEST(AlphaFold3Test, TheSeedDecidesEverything) {
  AlphaFold3 model = RandomModel(TinyConfig(Ops::kFused));
  const Features features = RandomBatch({}, 1);
  const Step first = RunStep(model, features, 3);
  at::manual_seed(99);  // the global generator is not read
  const Step again = RunStep(model, features, 3), other = RunStep(model, features, 4);
  EXPECT_EQ(first.loss, again.loss);
  EXPECT_NE(first.loss, other.loss);
  for (const auto& [name, gradient] : first.gradients) {
    EXPECT_TRUE(gradient.equal(again.gradients.at(name))) << name;
  }
}

TEST(AlphaFold3Test, CheckpointingChangesNoGradient) {
  ModelConfig config = TinyConfig(Ops::kFused);
  config.checkpointing = false;
  AlphaFold3 plain = RandomModel(config);
  config.checkpointing = true;
  AlphaFold3 kept = RandomModel(config);
  const Features features = RandomBatch({}, 1);
  const Step a = RunStep(plain, features), b = RunStep(kept, features);
  EXPECT_EQ(a.loss, b.loss);
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  std::string where;
  EXPECT_LT(LargestDifference(a, b, &where), 1e-5) << where;
}

TEST(AlphaFold3Test, DropoutOnlyInTraining) {
  ModelConfig config = TinyConfig(Ops::kBaseline);
  config.recycling = 1;
  AlphaFold3 model = RandomModel(config);
  const Features features = RandomBatch({}, 1);
  const at::NoGradGuard no_grad;
  const double training = model->Loss(features, 3).total.item<double>();
  model->eval();
  EXPECT_NE(model->Loss(features, 3).total.item<double>(), training);
}

// bfloat16 autocast stays near float32, with and without checkpointing, through several cycles.
TEST(AlphaFold3Test, Autocast) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    ModelConfig config = TinyConfig(ops);
    const Features features = RandomBatch({}, 1);
    AlphaFold3 model = RandomModel(config);
    model->eval();
    const Step exact = RunStep(model, features);
    const Step rounded = [&] {
      const BFloat16Autocast scope;
      return RunStep(model, features);
    }();
    EXPECT_NEAR(rounded.loss, exact.loss, 0.05 * exact.loss);
    EXPECT_EQ(rounded.gradients.size(), exact.gradients.size());
  }
}

TEST(AlphaFold3Test, SampleHasThePositionsOfTheAtoms) {
  AlphaFold3 model = RandomModel(TinyConfig(Ops::kFused));
  const Features features = testing::Padded(RandomBatch({.batch = 2}, 1), 2);
  const at::Tensor x = model->Sample(features, 5, 3);
  EXPECT_EQ(x.sizes(), features.at("atom_positions").sizes());
  EXPECT_TRUE(x.isfinite().all().item<bool>());
  EXPECT_EQ((x * features.at("atom_mask").eq(0).unsqueeze(-1)).abs().max().item<double>(), 0);
  EXPECT_FALSE(x.requires_grad());
  EXPECT_TRUE(x.equal(model->Sample(features, 5, 3)));
}

TEST(AlphaFold3Test, AMissingFeatureIsNamed) {
  AlphaFold3 model(TinyConfig(Ops::kBaseline));
  Features features = RandomBatch({}, 1);
  features.erase("profile");
  try {
    model->Loss(features, 1);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("profile"), std::string::npos) << error.what();
  }
}

// Depth times the block, so that the test need not hold the whole model.
TEST(AlphaFold3Test, PaperSize) {
  ModelConfig config;
  config.pairformer.blocks = 1;
  config.diffusion.blocks = 1;
  const std::int64_t one = CountParameters(*AlphaFold3(config));
  config.diffusion.blocks = 2;
  const std::int64_t two = CountParameters(*AlphaFold3(config));
  const std::int64_t whole = one + 23 * (two - one) + 47 * 3070848;
  EXPECT_EQ(whole, 355143554);
}

}  // namespace
}  // namespace megafold::model
