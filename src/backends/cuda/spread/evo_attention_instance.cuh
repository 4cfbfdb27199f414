// Bodies of SpreadAttention.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/spread/evo_attention_backward.cuh"

namespace megafold::cuda {

template <DType kType, int kDim>
void SpreadAttention<kType, kDim>::Backward(const SpreadParams& p, cudaStream_t stream) {
  LaunchSpreadBackward<typename ElementOf<kType>::Type, kDim>(p, stream);
}

template <DType kType, int kDim>
int SpreadAttention<kType, kDim>::BackwardBytes(const SpreadParams& p) {
  return SpreadBackwardBytes<typename ElementOf<kType>::Type, kDim>(p);
}

}  // namespace megafold::cuda
