// torch.ops.megafold.build_info: what `megafold.build_info()` shows, as JSON.
#include "megafold/core/build_info.h"

#include <torch/library.h>

#include <string>
#include <string_view>

#include "megafold/core/error.h"

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
    backends += StrCat(backends.empty() ? "" : ", ", Quoted(Name(backend.device)),
                       ": {\"built\": ", backend.built ? "true" : "false",
                       ", \"detail\": ", Quoted(backend.detail), "}");
  }
  return StrCat("{\"version\": ", Quoted(Version()), ", \"commit\": ", Quoted(GitCommit()),
                ", \"compiler\": ", Quoted(Compiler()), ", \"backends\": {", backends, "}}");
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(megafold, library) { library.def("build_info() -> str", BuildInfo); }

}  // namespace megafold::torch_ops
