// Bodies of SpreadAttention.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/spread/evo_attention_backward.cuh"
#include "backends/cuda/spread/evo_attention_delta.cuh"
#include "backends/cuda/spread/evo_attention_forward.cuh"

namespace megafold::cuda {

template <DType kType, int kDim>
void SpreadAttention<kType, kDim>::Forward(const SpreadParams& p, cudaStream_t stream) {
  if constexpr (SpreadHasForward(kDim)) {
    LaunchSpreadForward<typename ElementOf<kType>::Type, kDim>(p, stream);
  }
}

template <DType kType, int kDim>
int SpreadAttention<kType, kDim>::ForwardBytes(const SpreadParams& p) {
  return SpreadForwardBytes<typename ElementOf<kType>::Type, kDim>(p);
}

template <DType kType, int kDim>
void SpreadAttention<kType, kDim>::Backward(const SpreadParams& p, cudaStream_t stream) {
  LaunchSpreadBackward<typename ElementOf<kType>::Type, kDim>(p, stream);
}

template <DType kType, int kDim>
int SpreadAttention<kType, kDim>::BackwardBytes(const SpreadParams& p) {
  return SpreadBackwardBytes<typename ElementOf<kType>::Type, kDim>(p);
}

template <DType kType, int kDim>
void SpreadAttention<kType, kDim>::Delta(const SpreadParams& p, float* delta, cudaStream_t stream) {
  LaunchSpreadDelta<typename ElementOf<kType>::Type, kDim>(p, delta, stream);
}

}  // namespace megafold::cuda
