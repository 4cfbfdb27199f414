// Bodies of HopperAttention.
#pragma once

#include <algorithm>

#include "backends/cuda/attention/element.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/sm90/evo_attention_forward.cuh"
#include "backends/cuda/sm90/evo_attention_keys.cuh"
#include "backends/cuda/sm90/evo_attention_queries.cuh"

namespace megafold::cuda {

inline int Multiprocessors() {
  int device = 0;
  int count = 0;
  CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
  CheckCuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
            "cudaDeviceGetAttribute");
  return count;
}

template <DType kType, int kDim>
void HopperAttention<kType, kDim>::Forward(const HopperAttentionParams& p, cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  using Tiling = ForwardTilingType<kDim <= 32 ? 3 : 2, kDim <= 48 ? 3 : 2>;
  const int blocks = std::min(ForwardItems(p, Tiling::kValue), Multiprocessors());
  const auto launch = [&](auto kernel, std::size_t bytes) {
    LaunchKernel("evo_attention forward (cuda sm90a)", kernel, blocks, Tiling::kValue.Threads(),
                 bytes, stream, p);
  };
  if (p.bias_by_queries != nullptr) {
    return launch(ForwardKernel<T, kDim, Tiling, true>, ForwardLayout<kDim, Tiling, true>::kBytes);
  }
  launch(ForwardKernel<T, kDim, Tiling, false>, ForwardLayout<kDim, Tiling, false>::kBytes);
}

template <DType kType, int kDim>
void HopperAttention<kType, kDim>::BackwardKeys(const HopperAttentionParams& p,
                                                cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  using Layout = KeysLayout<kDim>;
  const int blocks = std::min(KeysWork<Layout::kRows>::Count(p), Multiprocessors());
  LaunchKernel("evo_attention dK, dV (cuda sm90a)", KeysKernel<T, kDim>, blocks,
               Layout::Roles::kThreads, Layout::kBytes, stream, p);
}

template <DType kType, int kDim>
void HopperAttention<kType, kDim>::BackwardQueries(const HopperAttentionParams& p,
                                                   cudaStream_t stream) {
  using T = typename ElementOf<kType>::Type;
  const std::int64_t blocks = p.groups * p.key_blocks * p.query_tiles * p.heads * p.row_chunks;
  const auto launch = [&](auto kernel) {
    LaunchClusters("evo_attention dQ, dBias (cuda sm90a)", kernel, blocks, p.key_blocks,
                   QueriesLayout<kDim>::Roles::kThreads, QueriesLayout<kDim>::kBytes, stream, p);
  };
  const bool masked = p.mask_columns.tiles != nullptr;
  if (p.dbias != nullptr) {
    return masked ? launch(QueriesKernel<T, kDim, true, true>)
                  : launch(QueriesKernel<T, kDim, true, false>);
  }
  masked ? launch(QueriesKernel<T, kDim, false, true>)
         : launch(QueriesKernel<T, kDim, false, false>);
}

}  // namespace megafold::cuda
