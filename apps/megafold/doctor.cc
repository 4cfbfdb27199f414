#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/version.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "apps/megafold/commands.h"
#include "megafold/core/build_info.h"
#include "megafold/core/error.h"
#include "megafold/core/threads.h"
#include "megafold/ops/operators.h"
#include "torch_ops/tensors.h"
#include "train/device.h"
#include "tuning/load.h"

namespace megafold::apps {
namespace {

void Line(const std::string& what, const std::string& value) {
  std::cout << what << std::string(what.size() < 16 ? 16 - what.size() : 1, ' ') << value << "\n";
}

// Where a loaded function's library lies: what the program found at run time, not at build time.
std::string LibraryOf(const void* function) {
  Dl_info info = {};
  if (dladdr(function, &info) == 0 || info.dli_fname == nullptr) return "";
  return info.dli_fname;
}

// A tensor made, added and read back on a device says more than a list of devices.
bool Works(const at::Device& device, std::string* why) {
  try {
    const at::Tensor ones = at::ones({4, 4}, at::device(device));
    return (ones + ones).sum().item<float>() == 32.0F;
  } catch (const std::exception& error) {
    const std::string text = error.what();
    *why = text.substr(0, text.find('\n'));
    return false;
  }
}

// A table that is ignored costs speed alone, so it does not make the installation ill.
void TuningLines() {
  for (const char* name : {"cpu", "auto"}) {
    const at::Device device = train::PickDevice(name);
    if (std::string(name) == "auto" && device.is_cpu()) continue;
    const tuning::TableReport report = tuning::ReadTables(torch_ops::ToDevice("doctor", device));
    const std::string label = "tuned on " + device.str();
    if (report.used.empty()) Line(label, "no table: the built-in order of implementations");
    for (const std::string& line : report.used) Line(label, line);
    for (const std::string& line : report.problems) Line(label, "IGNORED: " + line);
  }
}

// What runs on a kernel of ours, for each backend that is built.
void OperatorLines() {
  for (const BackendInfo& backend : Backends()) {
    if (!backend.built) continue;
    std::string ours, others;
    for (const ops::Operator op : ops::kOperators) {
      std::string& names = ops::IsImplemented(op, backend.device) ? ours : others;
      names += StrCat(names.empty() ? "" : ", ", ops::Name(op));
    }
    Line(StrCat("kernels, ", Name(backend.device)),
         others.empty() ? ours : StrCat(ours, "; by PyTorch's operators: ", others));
  }
}

int Doctor() {
  bool healthy = true;
  Line("megafold", std::string(Version()) + " (" + std::string(GitCommit()) + ")");
  Line("compiler", std::string(Compiler()));
  for (const BackendInfo& backend : Backends()) {
    Line(std::string("backend ") + Name(backend.device),
         (backend.built ? "built, " : "") + std::string(backend.detail));
  }
  OperatorLines();
  Line("PyTorch", std::string(TORCH_VERSION));
  Line("devices", train::AvailableDevices());
  Line("threads", std::to_string(at::get_num_threads()) + " for PyTorch, " +
                      std::to_string(GetNumThreads()) + " for the fused operators");
  const auto version = &Version;
  const auto threads = &at::get_num_threads;
  for (const auto& [name, library] :
       {std::pair{"libmegafold", LibraryOf(reinterpret_cast<const void*>(version))},
        std::pair{"libtorch", LibraryOf(reinterpret_cast<const void*>(threads))}}) {
    healthy = healthy && !library.empty();
    Line(name, library.empty() ? "NOT FOUND" : library);
  }
  for (const char* name : {"cpu", "auto"}) {
    const at::Device device = train::PickDevice(name);
    if (std::string(name) == "auto" && device.is_cpu()) continue;
    std::string why;
    const bool works = Works(device, &why);
    healthy = healthy && works;
    Line("tensors on " + device.str(), works ? "work" : "FAIL: " + why);
  }
  TuningLines();
  std::cout << (healthy ? "all is well\n" : "something is wrong: see the lines in capitals\n");
  return healthy ? 0 : kFailure;
}

}  // namespace

void AddDoctor(CLI::App& app, int* status) {
  CLI::App* command = app.add_subcommand(
      "doctor", "Say what this build has and what works here; status 0 when all is well");
  command->footer("Example:\n  megafold doctor");
  command->callback([status] { *status = Doctor(); });
}

}  // namespace megafold::apps
