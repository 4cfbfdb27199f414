#include "backends/cpu/cpu_backend.h"

#include <string>

#include "backends/cpu/evo_attention.h"
#include "backends/cpu/layer_norm_linear.h"
#include "backends/cpu/ref/evo_attention.h"
#include "backends/cpu/ref/layer_norm_linear.h"
#include "backends/cpu/ref/transition.h"
#include "backends/cpu/ref/triangle_multiplication.h"
#include "backends/cpu/transition.h"
#include "backends/cpu/triangle_multiplication.h"
#include "megafold/core/read_file.h"

namespace megafold::cpu {
namespace {

constexpr const char* kSimd = "cpu simd";
constexpr const char* kReference = "cpu ref";

template <typename Args>
Support Everything(const Args&) {
  return Support::Yes();
}

template <typename Args>
Kernel<Args> Reference(void (*run)(const Args&, Workspace, Stream)) {
  return {&Everything<Args>, &NoWorkspace<Args>, run};
}

}  // namespace

std::span<const EvoAttentionImplementation> EvoAttentionImplementations() {
  static const EvoAttentionImplementation list[] = {
      {kSimd, DeviceType::kCpu, EvoAttentionForwardKernel(), EvoAttentionBackwardKernel()},
      {kReference, DeviceType::kCpu, Reference(&ref::EvoAttentionForward),
       Reference(&ref::EvoAttentionBackward)}};
  return list;
}

std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations() {
  static const LayerNormLinearImplementation list[] = {
      {kSimd, DeviceType::kCpu, LayerNormLinearForwardKernel(), LayerNormLinearBackwardKernel()},
      {kReference, DeviceType::kCpu, Reference(&ref::LayerNormLinearForward),
       Reference(&ref::LayerNormLinearBackward)}};
  return list;
}

std::span<const TransitionImplementation> TransitionImplementations() {
  static const TransitionImplementation list[] = {
      {kSimd, DeviceType::kCpu, TransitionForwardKernel(), TransitionBackwardKernel()},
      {kReference, DeviceType::kCpu, Reference(&ref::TransitionForward),
       Reference(&ref::TransitionBackward)}};
  return list;
}

std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations() {
  static const TriangleMultiplicationImplementation list[] = {
      {kSimd, DeviceType::kCpu, TriangleMultiplicationForwardKernel(),
       TriangleMultiplicationBackwardKernel()},
      {kReference, DeviceType::kCpu, Reference(&ref::TriangleMultiplicationForward),
       Reference(&ref::TriangleMultiplicationBackward)}};
  return list;
}

std::string DeviceName() {
  const std::string info = ReadFile("/proc/cpuinfo", 1 << 16).value_or("");
  const std::size_t line = info.find("model name");
  const std::size_t start = line == std::string::npos ? line : info.find(": ", line);
  if (start != std::string::npos) {
    return info.substr(start + 2, info.find('\n', start) - start - 2);
  }
  return "unnamed processor";
}

}  // namespace megafold::cpu
