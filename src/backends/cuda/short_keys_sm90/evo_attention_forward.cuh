// Forward of EvoAttention on Hopper where a row has at most 128 keys and no bias: all scores of 64
// queries are in registers at once, P goes from there into the product with V.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_common.cuh"

namespace megafold::cuda {

struct HopperShortForwardLayout {
  static constexpr int kStages = 3;  // of Q
  static constexpr int kKeys = kStages * kVectorTileBytes;
  static constexpr int kOut = kKeys + 2 * kKeysBytes;  // O of this tile and of the one before
  static constexpr int kTerms = kOut + 2 * kVectorTileBytes;
  static constexpr int kOnes = kTerms + 2 * kHopperShortKeys * 4;
  static constexpr int kBarriers = kOnes + 256;
  static constexpr int kBytes = kBarriers + (kStages + 2) * 8 + 1024;  // alignment
  static constexpr int kBlocks = 4;                                    // of a multiprocessor
  static_assert(kBlocks * (kBytes + 1024) <= 228 * 1024);
};

template <typename T>
__global__ __launch_bounds__(
    kHopperShortThreads,
    HopperShortForwardLayout::kBlocks) void HopperShortForwardKernel(const __grid_constant__
                                                                         HopperShortParams p) {
  using Layout = HopperShortForwardLayout;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  unsigned char* const base = memory + (shared - SharedAddress(memory));
  auto* const terms = reinterpret_cast<float*>(base + Layout::kTerms);
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t full = shared + Layout::kBarriers;
  const std::uint32_t keys_full = full + Layout::kStages * 8;
  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;

  const auto copy_queries = [&](const QueryStep& step, int stage) {
    const ItemPlace& at = step.at;
    BarrierExpect(full + stage * 8, kVectorTileBytes);
    CopyTensor(shared + stage * kVectorTileBytes, p.q_map, 0, step.tile * kHopperShortQueries,
               at.head, at.row, at.batch, full + stage * 8);
  };
  const auto copy_keys = [&](const ItemPlace& at, int parity) {
    CopyKeys(p, at, shared + Layout::kKeys + parity * kKeysBytes, keys_full + parity * 8);
  };
  const auto write_terms = [&](std::uint32_t bits, int parity) {
    terms[parity * kHopperShortKeys + thread] = MaskStart<T>(p, bits, thread, inverse_scale);
  };

  if (thread == 0) {
    for (int i = 0; i < Layout::kStages + 2; ++i) BarrierInit(full + i * 8, 1);
    BarrierInitFence();
  }
  if (thread < 64) {  // two groups of eight rows of ones
    reinterpret_cast<std::uint32_t*>(base + Layout::kOnes)[thread] = Pack(1.0F, 1.0F, T{});
  }
  FenceAsyncProxy();
  QueryStep now(p);
  write_terms(ItemMaskBits<T>(p, now.at), 0);
  __syncthreads();
  const int warp = __shfl_sync(0xFFFFFFFFU, thread / 32, 0);
  if (warp == kKeysWarp && ElectOne()) copy_keys(now.at, 0);
  QueryStep next = now;       // whose Q is copied
  QueryStep next_item = now;  // whose K and V are copied
  next_item.AdvanceItem(p);
  for (int stage = 0; stage < Layout::kStages - 1; ++stage, next.Advance(p)) {
    if (warp == kQueriesWarp && next.item < p.items && ElectOne()) copy_queries(next, stage);
    __syncwarp();
  }
  RingPosition<Layout::kStages> ring;
  int next_stage = Layout::kStages - 1;
  int parity = 0;  // of the item
  std::uint32_t keys_phase = 0;
  int staging = 0;
  std::uint32_t mask_bits = 0;
  const std::uint64_t ones = HalvesDescriptor(shared + Layout::kOnes, shared + Layout::kOnes + 128);
  for (; now.item < p.items; now.Advance(p)) {
    if (now.tile == 0) {
      if (next_item.item < p.items) mask_bits = ItemMaskBits<T>(p, next_item.at);
      BarrierWait(keys_full + parity * 8, keys_phase);
    }
    const std::uint32_t keys = shared + Layout::kKeys + parity * kKeysBytes;
    float s[kRowScores];
    StartScores(s, terms + parity * kHopperShortKeys);
    BarrierWait(full + ring.stage * 8, ring.FullParity());
    WgmmaFence();
    MultiplyRows<T>(s, shared + ring.stage * kVectorTileBytes, keys, true);
    WgmmaCommit();
    WgmmaWait<0>();
    PinRegisters(s);
    ring.Advance();
    if (warp == kQueriesWarp && next.item < p.items && ElectOne()) copy_queries(next, next_stage);
    if (warp == kKeysWarp && now.tile == 0 && next_item.item < p.items && ElectOne()) {
      copy_keys(next_item.at, parity ^ 1);
    }
    if (warp == kStoreWarp && ElectOne()) StoreTensorWaitRead();
    __syncwarp();
    next.Advance(p);
    next_stage = next_stage + 1 == Layout::kStages ? 0 : next_stage + 1;

    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = -kInfinity;
#pragma unroll
      for (int n = 0; n < kHopperShortKeys / 8; ++n) {
        maximum = fmaxf(maximum, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(0xFFFFFFFFU, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(0xFFFFFFFFU, maximum, 2));
      shift[half] = maximum == -kInfinity ? 0.0F : maximum * scale;
    }
    float sum[4] = {};
    std::uint32_t weights[kHopperShortKeys / 16][4];
#pragma unroll
    for (int k = 0; k < kHopperShortKeys / 16; ++k) {
#pragma unroll
      for (int i = 8 * k; i < 8 * k + 8; ++i) {
        s[i] = Exp2(fmaf(s[i], scale, -shift[i / 2 % 2]));
        sum[i % 4] += s[i];
      }
      ScoresAsA<T>(weights[k], s, k);
    }
    // O, and the sum of p as it was rounded for that: a query that sees one key gets exactly its V.
    float out[kVectorValues], rounded[4];
    const std::uint32_t values = VectorDescriptor::Low(keys + 2 * kVectorTileBytes);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kHopperShortKeys / 16; ++k) {
      Wgmma<T, kHopperShortDim>::template Run<Order::kMnMajor>(
          out, weights[k], VectorDescriptor::FromLow(values + k * VectorDescriptor::kStepMnMajor),
          k > 0);
      Wgmma<T, 8>::template Run<Order::kKMajor>(rounded, weights[k], ones, k > 0);
    }
    WgmmaCommit();
    const int query = now.tile * kHopperShortQueries + thread / 32 * 16 + LaneId() / 4;
    const float sums[2] = {SumOfRow(sum[0] + sum[1]), SumOfRow(sum[2] + sum[3])};
    WgmmaWait<0>();
    PinRegisters(out);
    PinRegisters(rounded);
    const std::uint32_t to = shared + Layout::kOut + staging * kVectorTileBytes;
    WriteVectors<T>(to, out, InverseOf(rounded[0]), InverseOf(rounded[2]));
    FenceAsyncProxy();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr float kLn2 = 0.693147180559945309F;
      if (LaneId() % 4 == 0 && query + half * 8 < p.queries) {
        p.lse[static_cast<std::int64_t>(now.item) * p.queries + query + half * 8] =
            sums[half] > 0.0F ? (shift[half] + __log2f(sums[half])) * kLn2 : kInfinity;
      }
    }
    const bool last = now.tile + 1 == p.query_tiles;
    if (last) write_terms(mask_bits, parity ^ 1);
    __syncthreads();
    if (warp == kStoreWarp && ElectOne()) {
      const ItemPlace& at = now.at;
      StoreTensor(p.out_map, to, 0, now.tile * kHopperShortQueries, at.head, at.row, at.batch);
      StoreTensorCommit();
    }
    __syncwarp();
    staging ^= 1;
    if (last) {
      keys_phase ^= static_cast<std::uint32_t>(parity);
      parity ^= 1;
      next_item.AdvanceItem(p);
    }
  }
  if (warp == kStoreWarp && ElectOne()) StoreTensorWaitRead();
}

}  // namespace megafold::cuda
