// megafold tune: measures every implementation of an operator on this device and writes a table of
// the fastest (docs/tuning.md).
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>

#include "apps/megafold/attention_case.h"
#include "apps/megafold/commands.h"
#include "apps/megafold/run_config.h"
#include "config/config.h"
#include "megafold/core/build_info.h"
#include "megafold/core/error.h"
#include "model/attention_shapes.h"
#include "train/device.h"
#include "train/files.h"
#include "tuning/search.h"

namespace megafold::apps {
namespace {

struct Options {
  std::vector<std::string> configs;
  std::vector<std::string> assignments;
  std::string device = "auto";
  std::string dtype;
  std::string output;
  std::vector<int> tokens;
  double seconds = 0.1;
  int atoms_per_token = 9;
  int templates = 4;
};

// A problem once, whichever configurations have it.
struct Job {
  model::AttentionShape shape;
  at::ScalarType type, bias;
};

at::ScalarType TypeOf(const std::string& name) {
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  if (name == "float32") return at::kFloat;
  Fail(ErrorCode::kInvalidArgument, "--dtype is '", name,
       "', expected bfloat16, float16 or float32");
}

RunConfig ReadConfig(const std::string& file, const Options& options) {
  RunConfig config;
  config::ReadFileInto(config, file);
  for (const std::string& assignment : options.assignments) {
    config::OverrideIn(config, assignment);
  }
  return config;
}

// The token numbers to measure at: those asked for, else the crop.
std::vector<int> TokensOf(const RunConfig& config, const std::string& file,
                          const Options& options) {
  if (!options.tokens.empty()) return options.tokens;
  Require(config.data.crop_tokens > 0, file,
          ": data.crop_tokens is 0, so no size is known; give one with --tokens 384");
  return {config.data.crop_tokens};
}

std::vector<Job> JobsOf(const RunConfig& config, std::int64_t tokens, const Options& options) {
  const bool half = config.train.precision == train::Precision::kBf16;
  const at::ScalarType type =
      options.dtype.empty() ? (half ? at::kBFloat16 : at::kFloat) : TypeOf(options.dtype);
  std::vector<Job> jobs;
  for (const model::AttentionShape& shape :
       model::AttentionShapes(config.model, {.batch = config.train.batch_size,
                                            .tokens = tokens,
                                            .atoms = tokens * options.atoms_per_token,
                                            .templates = options.templates})) {
    // Under autocast the model's bias has the storage type; other callers keep it in float32.
    jobs.push_back({shape, type, type});
    if (type != at::kFloat) jobs.push_back({shape, type, at::kFloat});
  }
  return jobs;
}

at::Device DeviceOf(const Options& options) {
  const at::Device device = train::PickDevice(options.device);
  Require(!device.is_cpu() || options.device == "cpu",
          "tune measures GPUs, and PyTorch finds none here (devices: ", train::AvailableDevices(),
          "); --device cpu measures the CPU's implementations");
  return device;
}

// Milliseconds that the device takes for what `body` queues.
double Elapsed(const at::Device& device, const std::function<void()>& body) {
  if (device.is_cpu()) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
  }
  const c10::impl::VirtualGuardImpl runtime(device.type());
  const c10::Stream stream = runtime.getStream(device);
  c10::Event start(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event stop(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  start.record(stream);
  body();
  stop.record(stream);
  stop.synchronize();
  return start.elapsedTime(stop);
}

std::string Now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// "NVIDIA H200, sm_90" as "nvidia-h200-sm_90".
std::string FileNameOf(const std::string& device) {
  std::string name;
  for (const char c : device) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.';
    if (plain) {
      name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  return name;
}

std::string CommandOf(const Options& options) {
  std::string command = "megafold tune";
  for (const std::string& config : options.configs) command += " --config " + config;
  for (const std::string& assignment : options.assignments) command += " --set " + assignment;
  if (!options.tokens.empty()) command += " --tokens";
  for (const int tokens : options.tokens) command += StrCat(" ", tokens);
  command += " --device " + options.device;
  if (!options.dtype.empty()) command += " --dtype " + options.dtype;
  return StrCat(command, " --seconds ", options.seconds, " --atoms-per-token ",
                options.atoms_per_token, " --templates ", options.templates);
}

void PrintEntry(const tuning::TableEntry& entry) {
  std::printf("  %s\n", entry.problem.c_str());
  for (const auto& [name, time] : entry.times_ms) {
    std::printf("    %-28s %10.4f ms%s%s\n", name.c_str(), time,
                name == entry.standard ? "  default" : "",
                name == entry.implementation ? "  chosen" : "");
  }
  for (const auto& [name, why] : entry.failed) {
    std::printf("    %-28s failed: %s\n", name.c_str(), why.c_str());
  }
  std::fflush(stdout);
}

void PrintSummary(const tuning::Table& table) {
  std::size_t changed = 0;
  std::printf("\n%-28s %-28s %8s  %s\n", "default", "chosen", "gain", "problem");
  for (const tuning::TableEntry& entry : table.entries) {
    const auto before = entry.times_ms.find(entry.standard);
    const double now = entry.times_ms.at(entry.implementation);
    const std::string gain =
        before == entry.times_ms.end()
            ? "-"
            : StrCat(static_cast<int>(100 * (before->second / now - 1) + 0.5), " %");
    changed += entry.implementation == entry.standard ? 0 : 1;
    std::printf("%-28s %-28s %8s  %s\n", entry.standard.c_str(), entry.implementation.c_str(),
                gain.c_str(), entry.problem.c_str());
  }
  std::printf("%zu of %zu problems run on something else than the default\n", changed,
              table.entries.size());
}

// Problems of one class are measured once, at the first shape.
bool Measured(const tuning::Table& table, const std::string& problem) {
  return std::any_of(table.entries.begin(), table.entries.end(),
                     [&](const auto& entry) { return entry.problem == problem; });
}

void MeasureJob(const Job& job, const at::Device& device, const Options& options,
                tuning::Table* table) {
  AttentionCase attention(job.shape, job.type, job.bias, device);
  const tuning::Timer timer = tuning::MedianTimer(
      [&device](const std::function<void()>& body) { return Elapsed(device, body); },
      options.seconds);
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    const tuning::SearchCase problem = attention.Search(pass);
    if (Measured(*table, problem.candidates.problem)) continue;
    table->entries.push_back(tuning::Search(attention.device(), problem, timer));
    PrintEntry(table->entries.back());
  }
}

int Tune(const Options& options) {
  const at::Device device = DeviceOf(options);
  std::vector<Job> jobs;
  for (const std::string& file : options.configs) {
    const RunConfig config = ReadConfig(file, options);
    if (device.is_cpu()) train::SetThreads(config.train.threads);
    for (const int tokens : TokensOf(config, file, options)) {
      for (const Job& job : JobsOf(config, tokens, options)) jobs.push_back(job);
    }
  }
  const ops::DeviceDescription described = ops::DescribeDevice(torch_ops::ToDevice("tune", device));
  tuning::Table table{.device = described.name,
                      .driver = described.driver,
                      .megafold = std::string(Version()),
                      .commit = std::string(GitCommit()),
                      .date = Now(),
                      .command = CommandOf(options),
                      .entries = {}};
  std::filesystem::path output = options.output;
  if (output.empty())
    output = std::filesystem::path("tuning") / (FileNameOf(table.device) + ".json");
  std::printf("%zu attentions on %s, %g s for each candidate\n", jobs.size(), table.device.c_str(),
              options.seconds);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    std::printf("[%zu/%zu] %s\n", i + 1, jobs.size(), jobs[i].shape.use.c_str());
    MeasureJob(jobs[i], device, options, &table);
  }
  PrintSummary(table);
  if (output.has_parent_path()) std::filesystem::create_directories(output.parent_path());
  train::WriteFileAtomically(output, tuning::ToJson(table));
  std::cout << "table: " << output.string() << std::endl;
  return 0;
}

}  // namespace

void AddTune(CLI::App& app, int* status) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "tune", "Measure the operators' implementations for a configuration's shapes on this device");
  command
      ->add_option("--config", options->configs,
                   "YAML file, such as configs/af3.yaml; may be given several times")
      ->required();
  command->add_option("--set", options->assignments,
                      "override a key of the files: a.b.c=value; may be given several times");
  command
      ->add_option("--tokens", options->tokens,
                   "crop sizes to measure at (default: data.crop_tokens)")
      ->check(CLI::Range(1, 16384));
  command->add_option("--device", options->device, "auto (a GPU), cuda, cuda:N or cpu");
  command->add_option("--dtype", options->dtype,
                      "bfloat16, float16 or float32 (default: what train.precision says)");
  command->add_option("--seconds", options->seconds, "time for each candidate (default: 0.1)")
      ->check(CLI::Range(1e-4, 60.0));
  command
      ->add_option("--atoms-per-token", options->atoms_per_token,
                   "atoms of a crop over its tokens (default: 9)")
      ->check(CLI::Range(1, 100));
  command->add_option("--templates", options->templates, "templates of an entry (default: 4)")
      ->check(CLI::Range(0, 64));
  command->add_option("--output", options->output, "the table (default: tuning/<device>.json)");
  command->footer(
      "Examples:\n  megafold tune --config configs/af3.yaml\n"
      "  megafold tune --config configs/af3.yaml --tokens 256 384 512 768 --output my.json\n"
      "  megafold tune --config configs/tiny.yaml --device cpu --seconds 0.02 --output cpu.json\n"
      "A table in the environment variable MEGAFOLD_TUNING (a file, a folder of tables, or off) "
      "rules\n"
      "over those that are shipped. Nothing is ever timed while training.");
  command->callback([options, status] { *status = Tune(*options); });
}

}  // namespace megafold::apps
