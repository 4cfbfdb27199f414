#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "apps/megafold/alphafold3_trainable.h"
#include "apps/megafold/commands.h"
#include "apps/megafold/prediction.h"
#include "apps/megafold/run_config.h"
#include "config/config.h"
#include "megafold/core/error.h"
#include "torch_ops/composed.h"
#include "train/device.h"
#include "train/files.h"
#include "train/loader_source.h"
#include "train/trainer.h"

namespace megafold::apps {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> assignments;
  std::string output;
  bool resume = false;
  bool overwrite = false;
  bool print_config = false;
  bool help_config = false;
};

RunConfig ReadConfig(const Options& options) {
  Require(!options.config.empty(), "train needs --config FILE, such as configs/tiny.yaml");
  RunConfig config;
  config::ReadFileInto(config, options.config);
  for (const std::string& assignment : options.assignments) {
    config::OverrideIn(config, assignment);
  }
  Require(!config.data.root.empty(), options.config,
          ": data.root is empty; it names the folder with the training entries");
  return config;
}

std::filesystem::path OutputFolder(const Options& options) {
  if (!options.output.empty()) return options.output;
  return std::filesystem::path("runs") / std::filesystem::path(options.config).stem();
}

// Removes what an earlier run wrote, and nothing else.
void RemoveRun(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder)) return;
  std::vector<std::filesystem::path> doomed;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == "checkpoints" || name == "prediction" || name == "log.csv" ||
        name == "config.yaml" || name == "summary.txt" || name == "training.png" ||
        name.starts_with("events.out.tfevents.")) {
      doomed.push_back(entry.path());
    }
  }
  for (const auto& path : doomed) std::filesystem::remove_all(path);
}

// Says which keys differ from those the run went on with so far.
void ReportChangedKeys(const std::filesystem::path& file, RunConfig config) {
  RunConfig before;
  if (!std::filesystem::exists(file)) return;
  config::ReadFileInto(before, file);
  const auto old_fields = config::FieldsOf(before);
  const auto new_fields = config::FieldsOf(config);
  for (std::size_t i = 0; i < new_fields.size(); ++i) {
    const auto text = [](const config::Value& value) {
      std::string joined;
      for (const std::string& item : value.items) joined += (joined.empty() ? "" : ", ") + item;
      return joined;
    };
    const std::string was = text(old_fields[i].get());
    const std::string now = text(new_fields[i].get());
    if (was != now) {
      std::cout << "resume: " << new_fields[i].path << " was '" << was << "', now '" << now
                << "'\n";
    }
  }
}

std::string Angstroms(double distance) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.2f A", distance);
  return text.data();
}

int Finish(const RunConfig& config, const train::TensorDict& predicted, train::Trainer& trainer,
           const train::RunSummary& summary) {
  std::string text = summary.Text();
  if (summary.stop_signal == 0 && !predicted.empty()) {
    const PredictionFiles files =
        PredictEntry(config, predicted, trainer, summary.folder / "prediction");
    text += StrCat("prediction       ", config.prediction.entry, " in ", files.folder.string(),
                   ", ", Angstroms(files.rmsds.front()), " from the true structure (all atoms)");
    if (files.rmsds.size() > 1) {
      text += StrCat(", the nearest of ", files.rmsds.size(), " samples (median ",
                     Angstroms(files.rmsds[files.rmsds.size() / 2]), "; ", files.right_handed,
                     " nearer to it than to its mirror image)");
    }
    text += "\n";
  }
  train::WriteFileAtomically(summary.folder / "summary.txt", text);
  std::cout << "\n" << text << std::flush;
  if (summary.stop_signal == 0) return 0;
  std::cout << "stopped by a signal after step " << summary.last_step << " of "
            << config.train.steps << "; go on with the same command and --resume" << std::endl;
  return 128 + summary.stop_signal;  // as shells report it
}

// What of `ops: fused` is PyTorch's own on this device.
void ReportMissingKernels(const at::Device& device) {
  std::string names;
  for (const std::string& name : torch_ops::OperatorsWithoutKernel(device)) {
    names += (names.empty() ? "" : ", ") + name;
  }
  if (names.empty()) return;
  std::cout << "computed by PyTorch's operators, for this build has no kernel for "
            << c10::DeviceTypeName(device.type(), /*lower_case=*/true) << ": " << names
            << std::endl;
}

int Train(const Options& options) {
  if (options.help_config) {
    RunConfig defaults;
    std::cout << config::HelpText(config::FieldsOf(defaults));
    return 0;
  }
  const RunConfig config = ReadConfig(options);
  const std::string yaml = config::YamlOf(config);
  if (options.print_config) {
    std::cout << yaml;
    return 0;
  }
  const std::filesystem::path folder = OutputFolder(options);
  // Whatever may be refused comes before an earlier run is removed.
  const data::Dataset dataset(config.data);
  train::TensorDict predicted;
  if (!config.prediction.entry.empty()) predicted = ReadWholeEntry(config);
  train::PickDevice(config.train.device);
  AlphaFold3Trainable model(config.model, config.prediction.steps);
  if (options.overwrite) RemoveRun(folder);
  if (options.resume) ReportChangedKeys(folder / "config.yaml", config);
  train::Trainer trainer(config.train, model,
                         {folder, options.resume, yaml, isatty(STDOUT_FILENO) != 0}, std::cout);
  train::WriteFileAtomically(folder / "config.yaml", yaml);
  std::cout << dataset.size() << (dataset.size() == 1 ? " entry of " : " entries of ")
            << config.data.root << "; " << trainer.parameter_count() << " parameters on "
            << trainer.device().str() << "; steps " << trainer.step() + 1 << " to "
            << config.train.steps << " into " << folder.string() << std::endl;
  if (config.model.ops == model::Ops::kFused) ReportMissingKernels(trainer.device());
  const train::RunSummary summary =
      trainer.Run(train::LoaderSource(dataset, config.train.batch_size, config.train.seed));
  return Finish(config, predicted, trainer, summary);
}

}  // namespace

void AddTrain(CLI::App& app, int* status) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "Train a model as a configuration file says");
  command->add_option("--config", options->config, "YAML file, such as configs/tiny.yaml");
  command->add_option("--set", options->assignments,
                      "override a key of the file: a.b.c=value; may be given several times");
  command->add_option("--output", options->output,
                      "folder of the run (default: runs/<name of the configuration>)");
  CLI::Option* resume =
      command->add_flag("--resume", options->resume, "go on from the folder's newest checkpoint");
  command->add_flag("--overwrite", options->overwrite, "remove the folder's earlier run first")
      ->excludes(resume);
  command->add_flag("--print-config", options->print_config,
                    "print the whole configuration and stop");
  command->add_flag("--help-config", options->help_config,
                    "list every key with its default and its meaning, and stop");
  command->footer(
      "Examples:\n  megafold train --config configs/tiny.yaml --output runs/first\n"
      "  megafold train --config configs/tiny.yaml --output runs/first --resume "
      "--set train.steps=2000\n"
      "  megafold train --config configs/af3.yaml --set data.root=/data/pdb --print-config\n"
      "Ctrl-C saves a checkpoint after the step at hand; a second one stops at once.");
  command->callback([options, status] { *status = Train(*options); });
}

}  // namespace megafold::apps
