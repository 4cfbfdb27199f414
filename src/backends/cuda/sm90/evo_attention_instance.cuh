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

template <typename T, int kDim, typename Tiling>
void LaunchForward(const HopperAttentionParams& p, LaunchChain& chain) {
  const int blocks = std::min(ForwardItems(p, Tiling::kValue), Multiprocessors());
  const auto launch = [&](auto kernel, std::size_t bytes) {
    chain.Add("evo_attention forward (cuda sm90a)", kernel,
              {blocks, Tiling::kValue.Threads(), bytes}, p);
  };
  if (p.bias_by_queries != nullptr) {
    return launch(ForwardKernel<T, kDim, Tiling, true>, ForwardLayout<kDim, Tiling, true>::kBytes);
  }
  launch(ForwardKernel<T, kDim, Tiling, false>, ForwardLayout<kDim, Tiling, false>::kBytes);
}

// How long a forward takes, in hundredths of a row of an item: an item costs a little beside its
// rows, and all multiprocessors wait for the one that has the most items.
inline std::int64_t ForwardCost(const HopperAttentionParams& p, HopperForwardTiling tiling) {
  const int multiprocessors = Multiprocessors();
  const std::int64_t most = (ForwardItems(p, tiling) + multiprocessors - 1) / multiprocessors;
  return most * (100 * tiling.rows + 15);
}

template <DType kType, int kDim>
void HopperAttention<kType, kDim>::Forward(const HopperAttentionParams& p, LaunchChain& chain) {
  using T = typename ElementOf<kType>::Type;
  using Two = HopperForwardTilingType<2, kDim <= 48 ? 3 : 2>;
  if constexpr (kDim <= 32) {
    using Three = HopperForwardTilingType<3, 3>;
    if (ForwardCost(p, Three::kValue) <= ForwardCost(p, Two::kValue)) {
      return LaunchForward<T, kDim, Three>(p, chain);
    }
  }
  LaunchForward<T, kDim, Two>(p, chain);
}

template <DType kType, int kDim>
void HopperAttention<kType, kDim>::BackwardKeys(const HopperAttentionParams& p,
                                                LaunchChain& chain) {
  using T = typename ElementOf<kType>::Type;
  using Layout = KeysLayout<kDim>;
  const int blocks = std::min(KeysWork<Layout::kRows>::Count(p), Multiprocessors());
  chain.Add("evo_attention dK, dV (cuda sm90a)", KeysKernel<T, kDim>,
            {blocks, Layout::Roles::kThreads, Layout::kBytes}, p);
}

template <typename T, typename Layout>
void LaunchQueries(const HopperAttentionParams& p, LaunchChain& chain) {
  const std::int64_t blocks = p.groups * p.key_blocks * p.query_tiles * p.heads * p.row_chunks;
  const auto launch = [&](auto kernel) {
    chain.Add("evo_attention dQ, dBias (cuda sm90a)", kernel,
              {blocks, Layout::Roles::kThreads, Layout::kBytes, p.key_blocks}, p);
  };
  const bool masked = p.mask_columns.tiles != nullptr;
  if (p.dbias != nullptr) {
    return masked ? launch(QueriesKernel<T, Layout, true, true>)
                  : launch(QueriesKernel<T, Layout, true, false>);
  }
  masked ? launch(QueriesKernel<T, Layout, false, true>)
         : launch(QueriesKernel<T, Layout, false, false>);
}

template <DType kType, int kDim>
void HopperAttention<kType, kDim>::BackwardQueries(const HopperAttentionParams& p,
                                                   LaunchChain& chain) {
  using T = typename ElementOf<kType>::Type;
  if constexpr (BiasGradientTiles(kDim, true) != BiasGradientTiles(kDim, false)) {
    if (p.key_blocks == 1) return LaunchQueries<T, QueriesLayout<kDim, true>>(p, chain);
  }
  LaunchQueries<T, QueriesLayout<kDim, false>>(p, chain);
}

}  // namespace megafold::cuda
