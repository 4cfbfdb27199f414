#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/short_keys/evo_attention.h"
#include "backends/cuda/short_keys_sm90/evo_attention.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/sm90/evo_attention.h"
#include "backends/cuda/spread/evo_attention.h"
#include "megafold/core/read_file.h"

namespace megafold::cuda {

std::span<const EvoAttentionImplementation> EvoAttentionImplementations() {
  static const std::vector<EvoAttentionImplementation> implementations = [] {
    std::vector<EvoAttentionImplementation> list;
#ifdef MEGAFOLD_CUDA_SM90A
    list.push_back(kHopperShortKeysEvoAttention);
#endif
    list.push_back(kWindowsSpreadEvoAttention);
    list.push_back(kShortKeysEvoAttention);
    list.push_back(kSpreadEvoAttention);
#ifdef MEGAFOLD_CUDA_SM90A
    list.push_back(kHopperEvoAttention);
#endif
    list.push_back(kWideShortKeysEvoAttention);
    const auto portable = PortableEvoAttention();
    list.insert(list.end(), portable.begin(), portable.end());
    return list;
  }();
  return implementations;
}

std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations() { return {}; }
std::span<const TransitionImplementation> TransitionImplementations() { return {}; }
std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations() {
  return {};
}

std::string DeviceName(int index) {
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  return StrCat(properties.name, ", sm_", properties.major, properties.minor);
}

std::string DriverName() {
  int version = 0;  // 1000 major + 10 minor
  CheckCuda(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  const std::string cuda = StrCat("CUDA ", version / 1000, ".", version % 1000 / 10);
  // "NVRM version: NVIDIA UNIX ... Module for x86_64  580.159.04  Release Build ...", where the
  // system shows it.
  const std::string info = ReadFile("/proc/driver/nvidia/version", 4096).value_or("");
  constexpr const char* kSpace = " \t\n";
  for (std::size_t end = 0, start;
       (start = info.find_first_not_of(kSpace, end)) != std::string::npos;) {
    end = std::min(info.find_first_of(kSpace, start), info.size());
    const std::string word = info.substr(start, end - start);
    if (word.find('.') != std::string::npos &&
        word.find_first_not_of("0123456789.") == std::string::npos) {
      return StrCat(word, ", ", cuda);
    }
  }
  return cuda;
}

}  // namespace megafold::cuda
