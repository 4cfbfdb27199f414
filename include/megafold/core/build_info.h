// What this build of the library is: its version and which backends it carries.
#pragma once

#include <span>
#include <string_view>

#include "megafold/core/device.h"

namespace megafold {

struct BackendInfo {
  DeviceType device;
  bool built;
  std::string_view detail;  // the architectures it was built for, or why it was left out
};

std::string_view Version();    // "0.1.0"
std::string_view GitCommit();  // short hash of the sources, "-dirty" appended when they were changed; "unknown" outside git
std::string_view Compiler();   // "GNU 12.2.0, Release"
std::span<const BackendInfo> Backends();

}  // namespace megafold
