// Choosing an implementation: the first in the ordered list that runs on the operands' device and accepts the problem.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "backends/implementation.h"
#include "megafold/core/error.h"

namespace megafold::ops {

// True when MEGAFOLD_LOG=dispatch: every choice is then printed to stderr with the refusals before it.
inline bool LogsDispatch() {
  static const bool enabled = [] {
    const char* value = std::getenv("MEGAFOLD_LOG");
    return value != nullptr && std::strcmp(value, "dispatch") == 0;
  }();
  return enabled;
}

// Throws kUnsupported with every implementation's reason when none accepts. `member` selects the direction.
template <typename Impl, typename KernelType, typename Args, std::size_t kBackends>
const KernelType& Select(const char* op, const std::array<std::span<const Impl>, kBackends>& backends,
                         KernelType Impl::*member, const Args& args, Device device) {
  std::string refusals;
  for (std::span<const Impl> list : backends) {
    for (const Impl& impl : list) {
      if (impl.device != device.type) continue;
      const Support support = (impl.*member).supports(args);
      if (support) {
        if (LogsDispatch()) std::fprintf(stderr, "megafold: %s -> %s%s\n", op, impl.name, refusals.c_str());
        return impl.*member;
      }
      refusals += StrCat("; ", impl.name, ": ", support.reason());
    }
  }
  if (refusals.empty()) refusals = "; this build of megafold has no backend for that device";
  Fail(ErrorCode::kUnsupported, op, ": no implementation on device '", Name(device.type),
       "' accepts the problem", refusals);
}

// Runs the kernel after making sure that the caller's scratch is large enough.
template <typename KernelType, typename Args>
void Launch(const char* op, const KernelType& kernel, const Args& args, Workspace workspace, Stream stream) {
  const std::size_t needed = kernel.workspace(args);
  Require(workspace.bytes >= needed, op, ": workspace has ", workspace.bytes, " bytes, the problem needs ",
          needed);
  kernel.run(args, workspace, stream);
}

}  // namespace megafold::ops
