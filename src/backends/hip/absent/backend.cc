// Stands in for the backend in a build whose compiler is missing: it implements nothing and says so.
#include "backends/hip/hip_backend.h"

namespace megafold::hip {

std::span<const EvoAttentionImplementation> EvoAttentionImplementations() { return {}; }
std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations() { return {}; }
std::span<const TransitionImplementation> TransitionImplementations() { return {}; }
std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations() {
  return {};
}

std::string DeviceName(int) { return {}; }
std::string DriverName() { return {}; }

}  // namespace megafold::hip
