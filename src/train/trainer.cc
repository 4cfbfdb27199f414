#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>
#include <ostream>
#include <utility>

#include "megafold/core/error.h"
#include "train/autocast.h"
#include "train/csv_log.h"
#include "train/device.h"
#include "train/event_file.h"
#include "train/files.h"
#include "train/progress.h"
#include "train/schedule.h"
#include "train/stop_signal.h"

namespace megafold::train {
namespace {

constexpr const char* kCsvName = "log.csv";

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

NamedParameters ParametersOf(torch::nn::Module& module) {
  NamedParameters parameters;
  for (const auto& item : module.named_parameters()) {
    if (item.value().requires_grad()) parameters.emplace_back(item.key(), item.value());
  }
  return parameters;
}

TensorDict OnDevice(TensorDict features, const at::Device& device) {
  if (device.is_cpu()) return features;
  for (auto& [name, tensor] : features) {
    tensor = tensor.pin_memory().to(device, /*non_blocking=*/true);
  }
  return features;
}

std::string Number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.9g", value);
  return text.data();
}

std::string Joined(const std::vector<std::string>& items, const char* separator) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : separator) + item;
  return text;
}

// Mean over the first (or last) tenth, at least one.
double TenthMean(const std::vector<double>& losses, bool first) {
  if (losses.empty()) return 0;
  const std::size_t count = std::max<std::size_t>(1, losses.size() / 10);
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += losses[first ? i : losses.size() - 1 - i];
  return sum / static_cast<double>(count);
}

}  // namespace

std::uint64_t BatchSeed(std::uint64_t run_seed, std::int64_t batch) {
  // SplitMix64's output function over both numbers.
  std::uint64_t x = run_seed + 0x9E3779B97F4A7C15U * (static_cast<std::uint64_t>(batch) + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

struct Trainer::StepResult {
  double loss = 0;  // mean over the step's batches
  double gradient_norm = 0;
  double learning_rate = 0;
  double seconds = 0;
  double wait_seconds = 0;
  std::vector<std::pair<std::string, double>> terms;
  std::vector<std::vector<std::string>> entry_ids;  // per batch
  std::vector<double> losses;                       // per batch
};

struct Trainer::Logs {
  Logs(const std::filesystem::path& folder, std::int64_t last_step)
      : csv(folder / kCsvName, last_step), events(folder, last_step + 1) {}

  void Write(std::int64_t step, const StepResult& result) {
    std::vector<std::string> columns = {"loss"};
    std::vector<std::string> values = {Number(result.loss)};
    std::vector<std::pair<std::string, float>> scalars = {
        {"loss/total", static_cast<float>(result.loss)}};
    const auto add = [&](const std::string& column, const std::string& tag, double value) {
      columns.push_back(column);
      values.push_back(Number(value));
      scalars.emplace_back(tag, static_cast<float>(value));
    };
    for (const auto& [name, value] : result.terms) add(name, "loss/" + name, value);
    add("learning_rate", "train/learning_rate", result.learning_rate);
    add("gradient_norm", "train/gradient_norm", result.gradient_norm);
    add("seconds", "time/step_seconds", result.seconds);
    add("wait_seconds", "time/wait_seconds", result.wait_seconds);
    std::vector<std::string> entries;
    for (const auto& ids : result.entry_ids) entries.insert(entries.end(), ids.begin(), ids.end());
    columns.emplace_back("entries");
    values.push_back(Joined(entries, ";"));
    csv.Row(columns, step, values);
    events.Scalars(step, scalars);
  }

  CsvLog csv;
  EventFile events;
};

Trainer::Trainer(const TrainConfig& config, Trainable& model, RunOptions options, std::ostream& out)
    : config_(config),
      model_(model),
      options_(std::move(options)),
      out_(out),
      device_(PickDevice(config.device)),
      checkpoints_(options_.folder / "checkpoints", config.checkpoint.keep) {
  SetThreads(config_.threads);
  if (device_.is_cpu()) KeepFreedMemory();
  model_.module().to(device_);
  const NamedParameters parameters = ParametersOf(model_.module());
  adam_ = std::make_unique<Adam>(parameters, config_.optimizer);
  if (config_.ema_decay > 0) ema_ = std::make_unique<Ema>(parameters, config_.ema_decay);
  state_.seed = config_.seed;
  OpenFolder();
}

Trainer::~Trainer() = default;

void Trainer::OpenFolder() {
  const std::string name = options_.folder.string();
  const auto latest = checkpoints_.Latest();
  if (options_.resume) {
    Require(latest.has_value(), name, ": holds no checkpoint to resume from");
    state_ = LoadCheckpoint(*latest, Tensors());
    Require(state_.seed == config_.seed, name, ": was begun with train.seed ", state_.seed,
            ", the configuration says ", config_.seed);
    return;
  }
  Require(!latest && !std::filesystem::exists(options_.folder / kCsvName), name,
          ": already holds a run; continue it with --resume, or choose another folder");
  std::filesystem::create_directories(options_.folder);
}

CheckpointTensors Trainer::Tensors() {
  CheckpointTensors tensors;
  for (const auto& item : model_.module().named_parameters()) {
    tensors.model.emplace(item.key(), item.value().detach());
  }
  for (const auto& item : model_.module().named_buffers()) {
    tensors.model.emplace(item.key(), item.value());
  }
  if (ema_) tensors.ema = ema_->State();
  tensors.optimizer = adam_->State();
  return tensors;
}

std::filesystem::path Trainer::Save() {
  return checkpoints_.Save(state_, Tensors(), options_.config_yaml);
}

std::int64_t Trainer::parameter_count() const {
  std::int64_t count = 0;
  for (const at::Tensor& parameter : model_.module().parameters()) count += parameter.numel();
  return count;
}

Trainer::DeviceBatch Trainer::Fetch(BatchSource& source) {
  const auto waiting = Clock::now();
  TrainBatch batch = source.Next();
  const double seconds = Since(waiting);
  return {std::move(batch.entry_ids), OnDevice(std::move(batch.features), device_), seconds};
}

Trainer::StepResult Trainer::Step(BatchSource& source) {
  const auto begin = Clock::now();
  StepResult result;
  std::vector<at::Tensor> losses;
  std::vector<std::pair<std::string, at::Tensor>> terms;
  adam_->ClearGradients();
  for (int i = 0; i < config_.accumulate; ++i) {
    DeviceBatch batch = ahead_ ? *std::exchange(ahead_, std::nullopt) : Fetch(source);
    result.wait_seconds += batch.wait_seconds;
    result.entry_ids.push_back(std::move(batch.entry_ids));
    const std::uint64_t seed = BatchSeed(state_.seed, state_.batches + i);
    LossResult loss;
    {
      const AutocastScope autocast(device_.type(), config_.precision == Precision::kBf16);
      loss = model_.Loss(batch.features, seed);
    }
    (loss.total / config_.accumulate).backward();
    // An accelerator works through its queue while the host takes the next batch, pins and sends
    // it. On the CPU there is nothing to send.
    const bool last = state_.step + 1 == config_.steps && i + 1 == config_.accumulate;
    if (!device_.is_cpu() && !last) ahead_ = Fetch(source);
    losses.push_back(loss.total.detach().to(at::kFloat).reshape({}));
    for (std::size_t t = 0; t < loss.terms.size(); ++t) {
      const at::Tensor share = loss.terms[t].second.detach().to(at::kFloat) / config_.accumulate;
      if (i == 0) {
        terms.emplace_back(loss.terms[t].first, share);
      } else {
        terms[t].second = terms[t].second + share;
      }
    }
  }
  const at::Tensor all_losses = at::stack(losses);
  const at::Tensor norm = adam_->GradientNorm();
  const at::Tensor found_bad =
      (all_losses.isfinite().all() & norm.isfinite()).logical_not().to(at::kFloat);
  result.learning_rate = LearningRate(config_.optimizer, state_.step + 1);
  adam_->Step(result.learning_rate, norm, found_bad);

  // From here on the host waits for the device.
  const at::Tensor host_losses = all_losses.to(at::kCPU);
  for (int i = 0; i < config_.accumulate; ++i) {
    result.losses.push_back(host_losses[i].item<double>());
    result.loss += result.losses.back() / config_.accumulate;
  }
  for (const auto& [name, value] : terms) result.terms.emplace_back(name, value.item<double>());
  result.gradient_norm = norm.item<double>();
  CheckFinite(result);
  if (ema_) ema_->Update();
  result.seconds = Since(begin);
  return result;
}

void Trainer::CheckFinite(const StepResult& result) {
  for (std::size_t i = 0; i < result.losses.size(); ++i) {
    if (std::isfinite(result.losses[i])) continue;
    std::string terms;
    for (const auto& [name, value] : result.terms) terms += StrCat(", ", name, " ", value);
    Fail(ErrorCode::kInternal, "step ", state_.step + 1, ", entry ",
         Joined(result.entry_ids[i], ", "), ": the loss is ", result.losses[i], terms,
         "; stopped before the weights changed");
  }
  if (std::isfinite(result.gradient_norm)) return;
  std::vector<std::string> entries;
  for (const auto& ids : result.entry_ids) entries.push_back(Joined(ids, ", "));
  Fail(ErrorCode::kInternal, "step ", state_.step + 1, ", entry ", Joined(entries, ", "),
       ": the gradient norm is ", result.gradient_norm, ", first at parameter '",
       adam_->FirstBadGradient(), "'; stopped before the weights changed");
}

RunSummary Trainer::Run(const BatchSourceFactory& make_source) {
  const StopSignal stop;
  model_.module().train();
  Logs logs(options_.folder, state_.step);
  RunSummary summary;
  summary.first_step = state_.step;
  const std::unique_ptr<BatchSource> source = make_source(state_.batches);
  ahead_.reset();  // of an earlier source
  Progress progress(out_, {options_.terminal, config_.steps, state_.step, config_.report_every});
  std::vector<double> losses;
  std::int64_t saved_step = options_.resume ? state_.step : -1;
  if (options_.resume) summary.checkpoint = *checkpoints_.Latest();
  while (state_.step < config_.steps && StopSignal::received() == 0) {
    const StepResult result = Step(*source);
    ++state_.step;
    state_.batches += config_.accumulate;
    losses.push_back(result.loss);
    summary.seconds += result.seconds;
    summary.wait_seconds += result.wait_seconds;
    logs.Write(state_.step, result);
    progress.Step(state_.step, result.loss, result.seconds, result.wait_seconds);
    if (state_.step % config_.checkpoint.every == 0) {
      summary.checkpoint = Save();
      saved_step = state_.step;
    }
  }
  progress.Close();
  if (saved_step != state_.step) summary.checkpoint = Save();
  summary.last_step = state_.step;
  summary.first_loss = TenthMean(losses, true);
  summary.last_loss = TenthMean(losses, false);
  summary.peak_host_bytes = PeakHostMemory();
  if (!device_.is_cpu()) summary.peak_device_bytes = PeakDeviceMemory(device_);
  summary.stop_signal = state_.step < config_.steps ? StopSignal::received() : 0;
  summary.skipped = source->Skipped();
  summary.csv = logs.csv.path();
  summary.folder = options_.folder;
  return summary;
}

at::Tensor Trainer::Predict(const TensorDict& batch, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  model_.module().eval();
  std::optional<EmaScope> averaged;
  if (ema_) averaged.emplace(*ema_);
  const AutocastScope autocast(device_.type(), config_.precision == Precision::kBf16);
  return model_.Predict(OnDevice(batch, device_), seed).to(at::kCPU, at::kFloat);
}

}  // namespace megafold::train
