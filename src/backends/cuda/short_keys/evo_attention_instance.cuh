// Bodies of ShortKeysAttention: the kernel for the shape of the problem.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/short_keys/evo_attention_backward.cuh"
#include "backends/cuda/short_keys/evo_attention_forward.cuh"

namespace megafold::cuda {

template <DType kType, int kDim>
void ShortKeysAttention<kType, kDim>::Forward(const ShortKeysParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  if (p.bias.kind != TermKind::kNone) return LaunchShortForward<T, kDim, 2, true>(p, stream);
  LaunchShortForward<T, kDim, 8, false>(p, stream);
}

template <DType kType, int kDim>
int ShortKeysAttention<kType, kDim>::ForwardSharedBytes() {
  return ShortForwardLayout<typename ElementOf<kType>::Type, kDim, 8>::kBytes;
}

template <DType kType, int kDim>
int ShortKeysAttention<kType, kDim>::BackwardSharedBytes(int ahead) {
  return ShortBackwardLayout<typename ElementOf<kType>::Type, kDim>::Bytes(ahead);
}

template <DType kType, int kDim>
void ShortKeysAttention<kType, kDim>::Backward(const ShortKeysParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  if (p.bias.kind != TermKind::kNone) return LaunchShortBackward<T, kDim, true>(p, stream);
  LaunchShortBackward<T, kDim, false>(p, stream);
}

}  // namespace megafold::cuda
