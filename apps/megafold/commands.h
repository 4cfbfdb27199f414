// The program's subcommands. Each Add...() registers one with its options; its callback stores the
// exit status: 0 done, 1 something failed, 2 bad input.
#pragma once

#include <CLI/CLI.hpp>

namespace megafold::apps {

constexpr int kFailure = 1;
constexpr int kBadInput = 2;

void AddTrain(CLI::App& app, int* status);
void AddTune(CLI::App& app, int* status);
void AddInspect(CLI::App& app, int* status);
void AddDoctor(CLI::App& app, int* status);
void AddVersion(CLI::App& app, int* status);

}  // namespace megafold::apps
