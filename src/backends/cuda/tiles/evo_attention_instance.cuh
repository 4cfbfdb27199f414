// Bodies of TileAttention.
#pragma once

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/tiles/evo_attention_backward.cuh"

namespace megafold::cuda {

template <DType kType, int kDim>
void TileAttention<kType, kDim>::Backward(const TileParams& p, cudaStream_t stream) {
  LaunchTileBackward<typename ElementOf<kType>::Type, kDim>(p, stream);
}

template <DType kType, int kDim>
int TileAttention<kType, kDim>::BackwardBytes(const TileParams& p) {
  return TileLayout<typename ElementOf<kType>::Type, kDim>::Bytes(p);
}

}  // namespace megafold::cuda
