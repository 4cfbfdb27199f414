#include <array>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/sm80/evo_attention.h"

namespace megafold::cuda {

std::span<const EvoAttentionImplementation> EvoAttentionImplementations() {
  static const std::array implementations = {kPortableEvoAttention};
  return implementations;
}

std::span<const LayerNormLinearImplementation> LayerNormLinearImplementations() { return {}; }
std::span<const TransitionImplementation> TransitionImplementations() { return {}; }
std::span<const TriangleMultiplicationImplementation> TriangleMultiplicationImplementations() {
  return {};
}

}  // namespace megafold::cuda
