// torch.ops.megafold.build_info: what `megafold.build_info()` shows, as JSON; and tuning_report.
#include "megafold/core/build_info.h"

#include <torch/library.h>

#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "megafold/core/error.h"
#include "megafold/ops/operators.h"
#include "torch_ops/tensors.h"
#include "tuning/load.h"

namespace megafold::torch_ops {
namespace {

std::string Quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return result + "\"";
}

std::string BuildInfo() {
  std::string backends;
  for (const BackendInfo& backend : Backends()) {
    std::string kernels;
    for (const ops::Operator op : ops::kOperators) {
      if (!ops::IsImplemented(op, backend.device)) continue;
      kernels += StrCat(kernels.empty() ? "" : ", ", Quoted(ops::Name(op)));
    }
    backends += StrCat(backends.empty() ? "" : ", ", Quoted(Name(backend.device)),
                       ": {\"built\": ", backend.built ? "true" : "false",
                       ", \"detail\": ", Quoted(backend.detail), ", \"kernels\": [", kernels, "]}");
  }
  return StrCat("{\"version\": ", Quoted(Version()), ", \"commit\": ", Quoted(GitCommit()),
                ", \"compiler\": ", Quoted(Compiler()), ", \"backends\": {", backends, "}}");
}

// The tuned tables that hold for a device, and what is wrong with any.
std::tuple<std::vector<std::string>, std::vector<std::string>> TuningReport(c10::Device device) {
  tuning::TableReport report = tuning::ReadTables(ToDevice("tuning_report's device", device));
  return {std::move(report.used), std::move(report.problems)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(megafold, library) {
  library.def("build_info() -> str", BuildInfo);
  library.def("tuning_report(Device device) -> (str[] used, str[] problems)", TuningReport);
}

}  // namespace megafold::torch_ops
