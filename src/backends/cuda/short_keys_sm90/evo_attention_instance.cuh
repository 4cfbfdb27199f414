// Bodies of HopperShortKeysAttention.
#pragma once

#include <algorithm>

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_backward.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_forward.cuh"

namespace megafold::cuda {

// Blocks are persistent. Those that run together have heads that lie side by side.
template <typename Layout>
void LaunchHopperShort(const char* name, void (*kernel)(HopperShortParams), HopperShortParams p,
                       cudaStream_t stream) {
  int device = 0;
  int multiprocessors = 0;
  CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
  CheckCuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
            "cudaDeviceGetAttribute");
  const int blocks = std::min(p.items, multiprocessors * Layout::kBlocks);
  const auto batch_rows = static_cast<int>(p.batch_rows);
  const int heads = blocks / p.parts;
  const int rows = heads / p.heads;
  p.head_stride = heads;
  p.stride = {rows / batch_rows, rows % batch_rows, heads % p.heads, blocks % p.parts};
  LaunchKernel(name, kernel, blocks, kHopperShortThreads, Layout::kBytes, stream, p);
}

template <DType kType>
void HopperShortKeysAttention<kType>::Forward(const HopperShortParams& p, cudaStream_t stream) {
  LaunchHopperShort<HopperShortForwardLayout>(
      "evo_attention forward (cuda sm90a short)",
      HopperShortForwardKernel<typename ElementOf<kType>::Type>, p, stream);
}

template <DType kType>
void HopperShortKeysAttention<kType>::Backward(const HopperShortParams& p, cudaStream_t stream) {
  LaunchHopperShort<HopperShortBackwardLayout>(
      "evo_attention backward (cuda sm90a short)",
      HopperShortBackwardKernel<typename ElementOf<kType>::Type>, p, stream);
}

}  // namespace megafold::cuda
