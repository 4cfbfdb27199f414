// Bodies of HopperShortKeysAttention.
#pragma once

#include <algorithm>
#include <limits>

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_backward.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_forward.cuh"

namespace megafold::cuda {

// Blocks are persistent. Those that run together have heads that lie side by side.
template <typename Layout>
int HopperShortBlocks(const HopperShortParams& p) {
  int device = 0;
  int multiprocessors = 0;
  CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
  CheckCuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
            "cudaDeviceGetAttribute");
  return std::min(p.items, multiprocessors * Layout::kBlocks);
}

// Says which items are dealt out, where there are enough.
inline void DealLastItems(HopperShortParams& p, int blocks) {
  using Layout = HopperShortForwardLayout;
  p.fixed_items = p.items / blocks - Layout::kDealtRounds;
  if (p.fixed_items >= Layout::kTermsWarps) {
    // Each block is told one number for which there is no item.
    p.last_number = p.items - p.fixed_items * blocks + blocks - 1;
  } else {
    p.fixed_items = std::numeric_limits<int>::max();
    p.dealt = nullptr;
  }
}

template <typename Layout>
void LaunchHopperShort(const char* name, void (*kernel)(HopperShortParams), HopperShortParams p,
                       int blocks, cudaStream_t stream) {
  const auto batch_rows = static_cast<int>(p.batch_rows);
  const int heads = blocks / p.parts;
  const int rows = heads / p.heads;
  p.head_stride = heads;
  p.stride = {rows / batch_rows, rows % batch_rows, heads % p.heads, blocks % p.parts};
  LaunchKernel(name, kernel, blocks, Layout::kThreads, Layout::kBytes, stream, p);
}

template <DType kType>
void HopperShortKeysAttention<kType>::Forward(const HopperShortParams& params,
                                              cudaStream_t stream) {
  using Layout = HopperShortForwardLayout;
  HopperShortParams p = params;
  const int blocks = HopperShortBlocks<Layout>(p);
  DealLastItems(p, blocks);
  LaunchHopperShort<Layout>("evo_attention forward (cuda sm90a short)",
                            HopperShortForwardKernel<typename ElementOf<kType>::Type>, p, blocks,
                            stream);
}

template <DType kType>
void HopperShortKeysAttention<kType>::Backward(const HopperShortParams& p, cudaStream_t stream) {
  using Layout = HopperShortBackwardLayout;
  LaunchHopperShort<Layout>("evo_attention backward (cuda sm90a short)",
                            HopperShortBackwardKernel<typename ElementOf<kType>::Type>, p,
                            HopperShortBlocks<Layout>(p), stream);
}

}  // namespace megafold::cuda
