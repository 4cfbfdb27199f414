// Bodies of ShortKeysAttention: the kernel for the shape of the problem.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/short_keys/evo_attention_backward.cuh"
#include "backends/cuda/short_keys/evo_attention_forward.cuh"

namespace megafold::cuda {

template <DType kType, int kDim>
void ShortKeysAttention<kType, kDim>::Forward(const ShortKeysParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  if (p.queries <= kShortQueryTile) return LaunchShortForward<T, kDim, true>(p, stream);
  LaunchShortForward<T, kDim, false>(p, stream);
}

template <DType kType, int kDim>
int ShortKeysAttention<kType, kDim>::ForwardSharedBytes() {
  return ShortForwardLayout<typename ElementOf<kType>::Type, kDim, false>::kBytes;
}

template <DType kType, int kDim>
int ShortKeysAttention<kType, kDim>::BackwardSharedBytes(bool bias, int ahead) {
  using T = typename ElementOf<kType>::Type;
  return bias ? ShortBackwardLayout<T, kDim, true>::Bytes(ahead)
              : ShortBackwardLayout<T, kDim, false>::Bytes(ahead);
}

template <DType kType, int kDim>
void ShortKeysAttention<kType, kDim>::Backward(const ShortKeysParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  if (p.bias.kind != TermKind::kNone) return LaunchShortBackward<T, kDim, true>(p, stream);
  LaunchShortBackward<T, kDim, false>(p, stream);
}

}  // namespace megafold::cuda
