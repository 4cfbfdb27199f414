#include "megafold/core/build_info.h"

#include <array>

#include "megafold_git_commit.h"

namespace megafold {

std::string_view Version() { return MEGAFOLD_VERSION; }

std::string_view GitCommit() { return MEGAFOLD_GIT_COMMIT; }

std::string_view Compiler() { return MEGAFOLD_COMPILER; }

std::span<const BackendInfo> Backends() {
  static constexpr std::array<BackendInfo, 3> kBackends = {{
      {DeviceType::kCpu, true, "Highway, dispatched at run time"},
      {DeviceType::kCuda, MEGAFOLD_CUDA_BUILT, MEGAFOLD_CUDA_DETAIL},
      {DeviceType::kHip, MEGAFOLD_HIP_BUILT, MEGAFOLD_HIP_DETAIL},
  }};
  return kBackends;
}

}  // namespace megafold
