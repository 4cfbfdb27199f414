// What every backend implements of an operator, in the order of preference.
#pragma once

#include <array>
#include <span>

#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/hip/hip_backend.h"

namespace megafold::ops {

template <typename Impl>
using BackendLists = std::array<std::span<const Impl>, 3>;

template <typename Impl>
BackendLists<Impl> Backends();

template <>
inline BackendLists<EvoAttentionImplementation> Backends() {
  return {cuda::EvoAttentionImplementations(), hip::EvoAttentionImplementations(),
          cpu::EvoAttentionImplementations()};
}

template <>
inline BackendLists<LayerNormLinearImplementation> Backends() {
  return {cuda::LayerNormLinearImplementations(), hip::LayerNormLinearImplementations(),
          cpu::LayerNormLinearImplementations()};
}

template <>
inline BackendLists<TransitionImplementation> Backends() {
  return {cuda::TransitionImplementations(), hip::TransitionImplementations(),
          cpu::TransitionImplementations()};
}

template <>
inline BackendLists<TriangleMultiplicationImplementation> Backends() {
  return {cuda::TriangleMultiplicationImplementations(),
          hip::TriangleMultiplicationImplementations(),
          cpu::TriangleMultiplicationImplementations()};
}

}  // namespace megafold::ops
