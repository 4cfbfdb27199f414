#include <cstdio>

#include "apps/megafold/commands.h"
#include "megafold/core/build_info.h"

namespace megafold::apps {

void AddVersion(CLI::App& app, int* status) {
  CLI::App* command = app.add_subcommand("version", "Print the version and the commit");
  command->footer("Example:\n  megafold version");
  command->callback([status] {
    std::printf("megafold %.*s (%.*s)\n", static_cast<int>(Version().size()), Version().data(),
                static_cast<int>(GitCommit().size()), GitCommit().data());
    *status = 0;
  });
}

}  // namespace megafold::apps
