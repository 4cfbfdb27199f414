// Choosing an implementation: the tuned choice for the problem's class, else the first in the ordered list that runs on
// the operands' device and accepts the problem.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "backends/implementation.h"
#include "megafold/core/error.h"
#include "megafold/ops/tuning.h"
#include "ops/backends.h"
#include "ops/tuning.h"

namespace megafold::ops {

// True when MEGAFOLD_LOG=dispatch: every choice is then printed to stderr with the refusals before it.
inline bool LogsDispatch() {
  static const bool enabled = [] {
    const char* value = std::getenv("MEGAFOLD_LOG");
    return value != nullptr && std::strcmp(value, "dispatch") == 0;
  }();
  return enabled;
}

// One direction of an operator.
template <typename Impl, typename Args>
struct Route {
  const char* op;
  Kernel<Args> Impl::*kernel;
  ProblemClass (*problem)(const Args&);
};

// Calls visit(name, kernel, variant) for every implementation on the device that has this direction, in order, until it
// returns true.
template <typename Impl, typename Args, typename Visit>
void VisitImplementations(const Route<Impl, Args>& route, DeviceType device, const Visit& visit) {
  for (const std::span<const Impl> list : Backends<Impl>()) {
    for (const Impl& impl : list) {
      const Kernel<Args>& kernel = impl.*route.kernel;
      if (impl.device != device || kernel.supports == nullptr) continue;
      if (visit(impl.name, kernel, impl.variant)) return;
    }
  }
}

// The kernel that a tuned choice names, or null where there is none or it does not accept the problem.
template <typename Impl, typename Args>
const Kernel<Args>* SelectTuned(const Route<Impl, Args>& route, const Args& args, Device device,
                                std::string* refusals) {
  if (!HasTunedChoices(device)) return nullptr;
  const std::string_view name = TunedImplementation(device, route.problem(args));
  if (name.empty()) return nullptr;
  const Kernel<Args>* chosen = nullptr;
  VisitImplementations(route, device.type, [&](const char* candidate, const auto& kernel, bool) {
    if (name != candidate) return false;
    const Support support = kernel.supports(args);
    if (support) {
      chosen = &kernel;
    } else {
      *refusals += StrCat("; tuned ", candidate, ": ", support.reason());
    }
    return true;
  });
  if (chosen != nullptr && LogsDispatch()) {
    std::fprintf(stderr, "megafold: %s -> %.*s (tuned)\n", route.op, static_cast<int>(name.size()),
                 name.data());
  }
  return chosen;
}

// Throws kUnsupported with every implementation's reason when none accepts.
template <typename Impl, typename Args>
const Kernel<Args>& Select(const Route<Impl, Args>& route, const Args& args, Device device) {
  std::string refusals;
  const Kernel<Args>* chosen = SelectTuned(route, args, device, &refusals);
  if (chosen != nullptr) return *chosen;
  VisitImplementations(route, device.type,
                       [&](const char* name, const auto& kernel, bool variant) {
                         if (variant) return false;
                         const Support support = kernel.supports(args);
                         if (support) {
                           chosen = &kernel;
                           if (LogsDispatch()) {
                             std::fprintf(stderr, "megafold: %s -> %s%s\n", route.op, name,
                                          refusals.c_str());
                           }
                           return true;
                         }
                         refusals += StrCat("; ", name, ": ", support.reason());
                         return false;
                       });
  if (chosen != nullptr) return *chosen;
  if (refusals.empty()) refusals = "; this build of megafold has no backend for that device";
  Fail(ErrorCode::kUnsupported, route.op, ": no implementation on device '", Name(device.type),
       "' accepts the problem", refusals);
}

// What `megafold tune` measures: every implementation that accepts the problem, variants included.
template <typename Impl, typename Args>
TuningCandidates FindCandidates(const Route<Impl, Args>& route, const Args& args, Device device) {
  TuningCandidates found{std::string(route.problem(args).text()), {}};
  bool has_default = false;
  VisitImplementations(route, device.type,
                       [&](const char* name, const auto& kernel, bool variant) {
                         if (!kernel.supports(args)) return false;
                         const bool first = !variant && !has_default;
                         has_default = has_default || first;
                         auto& list = found.implementations;
                         list.insert(first ? list.begin() : list.end(), name);
                         return false;
                       });
  return found;
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
