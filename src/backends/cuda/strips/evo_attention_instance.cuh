// Bodies of StripAttention.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/strips/evo_attention_backward.cuh"
#include "backends/cuda/strips/evo_attention_forward.cuh"
#include "backends/cuda/strips/evo_attention_forward_stream.cuh"

namespace megafold::cuda {

template <DType kType, int kDim>
void StripAttention<kType, kDim>::Forward(const StripProblem& p, int tiles, int shared_limit,
                                          cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  const auto launch = [&]<int kTiles>() {
    if (LaunchStripStreamForward<T, kTiles, kDim>(p, shared_limit, stream)) return;
    LaunchStripForward<T, kTiles, kDim>(p, shared_limit, stream);
  };
  if (tiles == 1) {
    launch.template operator()<1>();
  } else if (tiles == 2) {
    launch.template operator()<2>();
  } else if constexpr (StripForwardTiles(kDim, true) == 3) {
    launch.template operator()<3>();
  }
}

template <DType kType, int kDim>
void StripAttention<kType, kDim>::Backward(const StripProblem& p, int tiles, float* dq_parts,
                                           int shared_limit, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  if constexpr (StripBackwardTiles(kDim) > 0) {
    if (tiles == 1) {
      LaunchStripBackward<T, 1, kDim>(p, dq_parts, shared_limit, stream);
    } else if (tiles == 2) {
      LaunchStripBackward<T, 2, kDim>(p, dq_parts, shared_limit, stream);
    } else if constexpr (StripBackwardTiles(kDim) == 3) {
      LaunchStripBackward<T, 3, kDim>(p, dq_parts, shared_limit, stream);
    }
  }
}

}  // namespace megafold::cuda
