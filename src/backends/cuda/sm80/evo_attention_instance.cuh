// Bodies of PortableAttention: the kernel for the shape of the problem.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/sm80/evo_attention_bias_gradient.cuh"
#include "backends/cuda/sm80/evo_attention_forward.cuh"

namespace megafold::cuda {

// Calls `run` with the shape as a constant. Wide elements and vectors have a single tiling.
template <int kElementBytes, int kDim, typename Run>
void WithShape(AttentionShape shape, const Run& run) {
  using enum AttentionShape;
  if constexpr (!IsWide(kElementBytes, kDim)) {
    if (shape == kShared) return run(std::integral_constant<AttentionShape, kShared>{});
    if (shape == kWindow) return run(std::integral_constant<AttentionShape, kWindow>{});
  }
  run(std::integral_constant<AttentionShape, kSingle>{});
}

template <DType kType, int kDim>
void PortableAttention<kType, kDim>::Forward(const AttentionParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  WithShape<sizeof(T), kDim>(ChooseShape(p, p.queries, false), [&](auto shape) {
    LaunchForward<T, kDim, ForwardTiling(decltype(shape)::value, sizeof(T), kDim)>(p, stream);
  });
}

template <DType kType, int kDim>
void PortableAttention<kType, kDim>::BackwardKeys(const AttentionParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  // Few queries to walk over want short tiles of them.
  const AttentionShape shape = ChooseShape(p, p.keys, p.queries <= 32);
  WithShape<sizeof(T), kDim>(shape, [&](auto constant) {
    LaunchBackwardKeys<T, kDim, KeysTiling(decltype(constant)::value, sizeof(T), kDim)>(p, stream);
  });
}

template <DType kType, int kDim>
void PortableAttention<kType, kDim>::BackwardQueries(const AttentionParams& p,
                                                     cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  WithShape<sizeof(T), kDim>(ChooseShape(p, p.queries, false), [&](auto shape) {
    LaunchBackwardQueries<T, kDim, QueriesTiling(decltype(shape)::value, sizeof(T), kDim)>(p,
                                                                                           stream);
  });
}

template <DType kType, int kDim>
void PortableAttention<kType, kDim>::BackwardBias(const AttentionParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  if (!IsWide(sizeof(T), kDim) && p.queries <= 32) {
    return LaunchBiasGradient<T, kDim, BiasTiling(AttentionShape::kWindow, sizeof(T), kDim)>(
        p, stream);
  }
  LaunchBiasGradient<T, kDim, BiasTiling(AttentionShape::kSingle, sizeof(T), kDim)>(p, stream);
}

}  // namespace megafold::cuda
