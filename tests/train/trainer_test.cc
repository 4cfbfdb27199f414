#include "train/trainer.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adam.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "megafold/core/error.h"
#include "tests/train/toy.h"
#include "train/schedule.h"

namespace megafold::train {
namespace {

TrainConfig ToyConfig(std::int64_t steps) {
  TrainConfig config;
  config.steps = steps;
  config.accumulate = 2;
  config.seed = 5;
  config.device = "cpu";
  config.optimizer.learning_rate = 1e-2;
  config.optimizer.warmup_steps = 4;
  config.ema_decay = 0.9;
  config.checkpoint.every = 2;
  return config;
}

NamedTensors CheckpointFile(const RunSummary& summary, const std::string& name) {
  return ReadSafetensors(summary.checkpoint / name).tensors;
}

void ExpectSameBits(const NamedTensors& a, const NamedTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
  }
}

RunSummary Train(const TrainConfig& config, const std::filesystem::path& folder, bool resume,
                 toy::Model& model) {
  std::ostringstream out;
  Trainer trainer(config, model, {folder, resume, "train: {}\n", false}, out);
  return trainer.Run(toy::Sources());
}

std::vector<std::string> Lines(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// Columns that hold no time.
std::string Timeless(const std::string& row) {
  std::istringstream stream(row);
  std::vector<std::string> cells;
  for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
  EXPECT_EQ(cells.size(), 9U) << row;
  return StrCat(cells[0], ",", cells[1], ",", cells[2], ",", cells[3], ",", cells[4], ",", cells[5],
                ",", cells[8]);
}

TEST(Trainer, ThreeAndThreeStepsAreSixBitForBit) {
  const toy::Folder straight("straight");
  const toy::Folder parts("parts");
  toy::Model one;
  const RunSummary six = Train(ToyConfig(6), straight.path(), false, one);
  toy::Model two;
  Train(ToyConfig(3), parts.path(), false, two);
  toy::Model three;  // a fresh process would have these weights
  const RunSummary resumed = Train(ToyConfig(6), parts.path(), true, three);

  EXPECT_EQ(resumed.first_step, 3);
  EXPECT_EQ(resumed.last_step, 6);
  for (const char* file : {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}) {
    ExpectSameBits(CheckpointFile(six, file), CheckpointFile(resumed, file));
  }
  const auto log_a = Lines(six.csv);
  const auto log_b = Lines(resumed.csv);
  ASSERT_EQ(log_a.size(), 7U);
  ASSERT_EQ(log_b.size(), 7U);
  EXPECT_EQ(log_a[0],
            "step,loss,error,size,learning_rate,gradient_norm,seconds,wait_seconds,entries");
  for (std::size_t i = 1; i < 7; ++i) EXPECT_EQ(Timeless(log_a[i]), Timeless(log_b[i]));
  EXPECT_NE(log_a[6].find("toy10;toy11"), std::string::npos) << log_a[6];
}

TEST(Trainer, RowsAfterTheCheckpointAreMadeAnew) {
  const toy::Folder folder("rows");
  toy::Model model;
  const RunSummary summary = Train(ToyConfig(5), folder.path(), false, model);
  std::filesystem::remove_all(summary.checkpoint);  // as if the power had gone after step 4
  toy::Model again;
  const RunSummary resumed = Train(ToyConfig(5), folder.path(), true, again);
  EXPECT_EQ(resumed.first_step, 4);
  EXPECT_EQ(Lines(resumed.csv).size(), 6U);
}

TEST(Trainer, LossFallsAndTheSummarySaysSo) {
  const toy::Folder folder("falls");
  toy::Model model;
  TrainConfig config = ToyConfig(150);
  config.checkpoint.every = 1000;
  const RunSummary summary = Train(config, folder.path(), false, model);
  EXPECT_LT(summary.last_loss, 0.5 * summary.first_loss);
  const std::string text = summary.Text();
  EXPECT_NE(text.find("torn (3x): torn.cif: ends early"), std::string::npos) << text;
  EXPECT_NE(text.find("s per step"), std::string::npos) << text;
  EXPECT_NE(text.find(summary.checkpoint.string()), std::string::npos) << text;
  EXPECT_GT(summary.peak_host_bytes, 1 << 20);
}

// The same updates by PyTorch's own Adam, clipping and averages.
TEST(Trainer, FollowsTorchAdam) {
  TrainConfig config = ToyConfig(9);
  config.optimizer.clip_norm = 0.05;  // active in every step
  config.optimizer.decay_every = 4;
  const toy::Folder folder("adam");
  toy::Model ours;
  const RunSummary summary = Train(config, folder.path(), false, ours);

  toy::Model theirs;
  toy::Source source(0);
  const auto& o = config.optimizer;
  torch::optim::Adam adam(
      theirs.net->parameters(),
      torch::optim::AdamOptions(o.learning_rate).betas({o.beta1, o.beta2}).eps(o.epsilon));
  std::map<std::string, at::Tensor> average;
  for (const auto& p : theirs.net->named_parameters()) {
    average[p.key()] = p.value().detach().clone();
  }
  for (std::int64_t step = 1; step <= config.steps; ++step) {
    adam.zero_grad();
    for (int i = 0; i < config.accumulate; ++i) {
      const std::uint64_t seed = BatchSeed(config.seed, (step - 1) * config.accumulate + i);
      (theirs.Loss(source.Next().features, seed).total / config.accumulate).backward();
    }
    torch::nn::utils::clip_grad_norm_(theirs.net->parameters(), o.clip_norm);
    for (auto& group : adam.param_groups()) group.options().set_lr(LearningRate(o, step));
    adam.step();
    for (const auto& p : theirs.net->named_parameters()) {
      average[p.key()] = 0.9 * average[p.key()] + 0.1 * p.value().detach();
    }
  }
  const NamedTensors ema = CheckpointFile(summary, "ema.safetensors");
  for (const auto& p : theirs.net->named_parameters()) {
    const at::Tensor mine = ours.net->named_parameters()[p.key()];
    EXPECT_TRUE(at::allclose(mine, p.value(), 1e-4, 2e-6)) << p.key();
    EXPECT_TRUE(at::allclose(ema.at(p.key()), average[p.key()], 1e-4, 2e-6)) << p.key();
  }
}

TEST(Trainer, PredictsWithTheAveragesAndPutsTheWeightsBack) {
  const toy::Folder folder("predict");
  toy::Model model;
  std::ostringstream out;
  Trainer trainer(ToyConfig(8), model, {folder.path(), false, "", false}, out);
  const RunSummary summary = trainer.Run(toy::Sources());
  const TensorDict batch = toy::Source(0).Next().features;
  const at::Tensor predicted = trainer.Predict(batch, 0);
  const NamedTensors saved = CheckpointFile(summary, "model.safetensors");
  for (const auto& p : model.net->named_parameters()) {
    EXPECT_TRUE(at::equal(saved.at(p.key()), p.value())) << p.key();
  }
  toy::Model averaged;
  NamedTensors targets;
  for (const auto& p : averaged.net->named_parameters()) {
    targets.emplace(p.key(), p.value().detach());
  }
  LoadInto(summary.checkpoint / "ema.safetensors", targets);
  EXPECT_TRUE(at::equal(predicted, averaged.Predict(batch, 0)));
  EXPECT_FALSE(at::equal(predicted, model.Predict(batch, 0)));
}

TEST(Trainer, NanLossStopsWithTheEntryAndKeepsTheWeights) {
  const toy::Folder folder("nan");
  toy::Model model;
  std::ostringstream out;
  TrainConfig config = ToyConfig(6);
  Trainer trainer(config, model, {folder.path(), false, "", false}, out);
  try {
    trainer.Run(toy::Sources(/*bad_batch=*/7));
    FAIL() << "a NaN loss went unnoticed";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("step 4, entry toy7: the loss is nan"), std::string::npos) << text;
  }
  EXPECT_EQ(trainer.step(), 3);
  toy::Model three_steps;
  const toy::Folder other("nan-other");
  Train(ToyConfig(3), other.path(), false, three_steps);
  for (const auto& p : three_steps.net->named_parameters()) {
    EXPECT_TRUE(at::equal(model.net->named_parameters()[p.key()], p.value())) << p.key();
  }
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "checkpoints" / "step-000002"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "checkpoints" / "step-000003"));
}

TEST(Trainer, ASignalEndsTheRunAfterTheStepWithACheckpoint) {
  const toy::Folder folder("signal");
  toy::Model model;
  std::ostringstream out;
  Trainer trainer(ToyConfig(1000), model, {folder.path(), false, "", false}, out);
  class Interrupting : public toy::Source {
   public:
    using Source::Source;
    TrainBatch Next() override {
      if (++count_ == 5) raise(SIGTERM);
      return Source::Next();
    }

   private:
    int count_ = 0;
  };
  const RunSummary summary =
      trainer.Run([](std::int64_t first) { return std::make_unique<Interrupting>(first); });
  EXPECT_EQ(summary.stop_signal, SIGTERM);
  EXPECT_EQ(summary.last_step, 3);
  EXPECT_EQ(ReadCheckpointState(summary.checkpoint).step, 3);
  EXPECT_EQ(ReadCheckpointState(summary.checkpoint).batches, 6);
}

TEST(Trainer, KeepsTheNewestCheckpoints) {
  const toy::Folder folder("keep");
  TrainConfig config = ToyConfig(9);
  config.checkpoint.keep = 2;
  toy::Model model;
  Train(config, folder.path(), false, model);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "checkpoints")) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"step-000008", "step-000009"}));
}

TEST(Trainer, RefusesFoldersThatDoNotFit) {
  const toy::Folder folder("refuse");
  toy::Model model;
  EXPECT_THROW(Train(ToyConfig(2), folder.path(), true, model), Error);  // nothing to resume
  Train(ToyConfig(2), folder.path(), false, model);
  EXPECT_THROW(Train(ToyConfig(2), folder.path(), false, model), Error);  // already a run
  TrainConfig other_seed = ToyConfig(4);
  other_seed.seed = 6;
  EXPECT_THROW(Train(other_seed, folder.path(), true, model), Error);
  TrainConfig wrong_device = ToyConfig(4);
  wrong_device.device = "cuda:99";
  EXPECT_THROW(Train(wrong_device, folder.path(), true, model), Error);
  wrong_device.device = "gpu";
  EXPECT_THROW(Train(wrong_device, folder.path(), true, model), Error);
}

TEST(Trainer, Bf16RunsUnderAutocast) {
  const toy::Folder folder("bf16");
  TrainConfig config = ToyConfig(3);
  config.precision = Precision::kBf16;
  toy::Model model;
  Train(config, folder.path(), false, model);
  EXPECT_EQ(model.seen_dtype, at::kBFloat16);
  EXPECT_EQ(model.net->first->weight.scalar_type(), at::kFloat);
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
}

TEST(Schedule, WarmsUpThenDecays) {
  OptimizerConfig config;
  EXPECT_DOUBLE_EQ(LearningRate(config, 1), 1.8e-6);
  EXPECT_DOUBLE_EQ(LearningRate(config, 500), 0.9e-3);
  EXPECT_DOUBLE_EQ(LearningRate(config, 1000), 1.8e-3);
  EXPECT_DOUBLE_EQ(LearningRate(config, 49999), 1.8e-3);
  EXPECT_DOUBLE_EQ(LearningRate(config, 50000), 1.8e-3 * 0.95);
  EXPECT_DOUBLE_EQ(LearningRate(config, 100001), 1.8e-3 * 0.95 * 0.95);
}

}  // namespace
}  // namespace megafold::train
