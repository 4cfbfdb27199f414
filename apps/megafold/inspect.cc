#include <iostream>
#include <memory>

#include "apps/megafold/commands.h"
#include "apps/megafold/run_config.h"
#include "config/config.h"
#include "data/dataset.h"
#include "data/summary.h"
#include "megafold/core/error.h"

namespace megafold::apps {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> assignments;
  std::string root;
  std::string ccd;
  std::vector<std::string> entries;
};

// One entry after the other; a bad one does not hide those behind it.
int Inspect(const Options& options) {
  RunConfig config;
  if (!options.config.empty()) config::ReadFileInto(config, options.config);
  for (const std::string& assignment : options.assignments) {
    config::OverrideIn(config, assignment);
  }
  if (!options.root.empty()) config.data.root = options.root;
  if (!options.ccd.empty()) config.data.ccd = options.ccd;
  if (!options.entries.empty()) config.data.entries = options.entries;
  Require(!config.data.root.empty(), "say where the data is: --config FILE or --root FOLDER");
  const data::Dataset dataset(config.data);
  int bad = 0;
  for (std::size_t i = 0; i < dataset.size(); ++i) {
    if (i > 0) std::cout << "\n";
    try {
      std::cout << data::ToText(dataset.Inspect(i)) << std::flush;
    } catch (const Error& error) {
      std::cerr << "megafold: " << error.what() << std::endl;
      ++bad;
    }
  }
  return bad > 0 ? kBadInput : 0;
}

}  // namespace

void AddInspect(CLI::App& app, int* status) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "Show entries as the model sees them: chains, tokens, atoms, alignment, what was left out");
  command->add_option("entries", options->entries, "entries by name; none: all of them");
  command->add_option("--config", options->config, "configuration whose data: section to use");
  command->add_option("--set", options->assignments, "override a key, e.g. data.max_msa_rows=512");
  command->add_option("--root", options->root, "folder with mmcif/ and msa/ (data.root)");
  command->add_option("--ccd", options->ccd, "chemical components (data.ccd)");
  command->footer(
      "Examples:\n  megafold inspect --config configs/tiny.yaml 1ubq\n"
      "  megafold inspect --root data/demo");
  command->callback([options, status] { *status = Inspect(*options); });
}

}  // namespace megafold::apps
