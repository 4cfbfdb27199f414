// Forward of EvoAttention on Hopper where a row has at most 128 keys and no bias. A multiprocessor
// has one block, into whose ring items are copied: 128 queries, keys and values of a head of a row.
// Two warpgroups take 64 queries each. All scores of 64 queries are in registers at once, P goes
// from there into the product with V, and the next item's scores are computed while O leaves.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_forward_again.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_forward_ring.cuh"

namespace megafold::cuda {

// bfloat16 has float32's range, and exponentials are of the scores as they are; a sum that leaves
// what is safe of it is rare. float16's small range trained models leave often: the maximum is
// always taken off.
template <typename T>
inline constexpr bool kTakesMaximum = std::is_same_v<T, __half>;

// Takes the scores' maximum as the shift.
__device__ __forceinline__ void TakeMaximum(ShortSums& sums, const float (&s)[kRowScores],
                                            float scale) {
  float maximum[2] = {-kInfinity, -kInfinity};
#pragma unroll
  for (int i = 0; i < kRowScores; ++i) maximum[i / 2 % 2] = fmaxf(maximum[i / 2 % 2], s[i]);
#pragma unroll
  for (int half = 0; half < 2; ++half) sums.shift[half] = ShiftOf(maximum[half], scale);
}

// s = <q, k> and the terms of the keys, over the scale, for 64 queries; queued.
template <typename T>
__device__ __forceinline__ void StartItem(float (&s)[kRowScores], std::uint32_t queries,
                                          std::uint32_t keys, std::uint32_t terms) {
  WgmmaFence();
  StartScores(s, terms);
  MultiplyVectors<T, kHopperShortDim, kVectorPitch>(s, queries, keys, true);
  WgmmaCommit();
}

// p of 64 queries and all keys, rounded as the product with V takes it.
template <typename T>
__device__ __forceinline__ ShortSums ComputeWeights(
    std::uint32_t (&weights)[kHopperShortKeys / 16][4], float (&s)[kRowScores], float scale) {
  ShortSums sums = {};
  if constexpr (kTakesMaximum<T>) TakeMaximum(sums, s, scale);
  float sum[4] = {};
#pragma unroll
  for (int k = 0; k < kHopperShortKeys / 16; ++k) {
#pragma unroll
    for (int i = 8 * k; i < 8 * k + 8; ++i) {
      s[i] = Exp2(fmaf(s[i], scale, -sums.shift[i / 2 % 2]));
      sum[i % 4] += s[i];
    }
    ScoresAsA<T>(weights[k], s, k);
  }
  // Summed before the products are queued, or all terms stay in registers until they run.
  sums.sum[0] = SumOfQuad(sum[0] + sum[1]);
  sums.sum[1] = SumOfQuad(sum[2] + sum[3]);
  return sums;
}

// out = P V, and the sum of P as it was rounded; queued.
template <typename T>
__device__ __forceinline__ void StartOut(float (&out)[kWideValues],
                                         const std::uint32_t (&weights)[kHopperShortKeys / 16][4],
                                         std::uint32_t values, std::uint32_t ones) {
  const std::uint32_t right = VectorDescriptor::Low(values, ones);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kHopperShortKeys / 16; ++k) {
    Wgmma<T, kWideDim>::template Run<Order::kMnMajor>(
        out, weights[k],
        VectorDescriptor::FromLow(right + k * VectorDescriptor::kStepMnMajorSameNext), k > 0);
  }
  WgmmaCommit();
}

// Stores a warp's 16 queries of O, from `query` on, and their log-sum-exp, of which a thread has
// two.
__device__ __forceinline__ void StoreOut(const HopperShortParams& p, const RingItem& item,
                                         int query, std::uint32_t out, const float (&log_sum)[2]) {
  FenceAsyncProxy();
  __syncwarp();
  if (query < p.queries && ElectOne()) {
    StoreTensor(p.out_map, out, 0, query, item.at.z, item.at.y, item.at.x);
    StoreTensorCommit();
  }
  __syncwarp();
  const int lane = LaneId();
  float* const lse = p.lse + static_cast<std::int64_t>(item.head) * p.queries + query;
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // after the fence, which would wait for it
    const int mine = half * 8 + lane / 4;
    if (lane % 4 == 0 && query + mine < p.queries) lse[mine] = log_sum[half];
  }
}

// What a computing warpgroup does: 64 queries of every so manieth item of the ring. Its warps do
// not meet.
template <typename T>
__device__ __forceinline__ void AttendItems(const HopperShortParams& p, std::uint32_t shared,
                                            const RingItem* items, int warp) {
  using Layout = HopperShortForwardLayout;
  const float scale = p.scale * kLog2E;
  const int tiles = TilesOfItem(p);
  const int step = Layout::kWarpgroups / tiles;
  const int warpgroup = warp / 4;
  const int start = warpgroup % tiles * kHopperShortQueries;
  const int warp_row = warp % 4 * kHopperShortOutRows;
  const std::uint32_t out_tile = shared + Layout::kOut + warpgroup * kVectorTileBytes;
  float s[kRowScores];
  const auto stage_of = [&](int slot) { return shared + slot * Layout::kStageBytes; };
  const auto terms_of = [&](int slot) { return shared + Layout::kTerms + slot * kTermBytes; };
  RingPosition<Layout::kStages> ring;
  ring.stage = warpgroup / tiles;
  // Queues the scores of an item that has come. Those of what comes after the last are never used.
  const auto begin = [&] {
    const int slot = ring.stage;
    BarrierWait(shared + Layout::kFull + slot * 8, ring.FullParity());
    StartItem<T>(s, stage_of(slot) + start * kVectorPitch, stage_of(slot) + Layout::kKeys,
                 terms_of(slot));
  };
  begin();
  while (true) {
    const int slot = ring.stage;
    const std::uint32_t tile = stage_of(slot) + start * kVectorPitch;
    const std::uint32_t keys = stage_of(slot) + Layout::kKeys;
    const std::uint32_t terms = terms_of(slot);
    WgmmaWait<0>();
    PinRegisters(s);
    const RingItem item = items[slot];
    if (item.head < 0) break;
    std::uint32_t weights[kHopperShortKeys / 16][4];
    ShortSums sums = ComputeWeights<T>(weights, s, scale);
    float out[kWideValues];
    StartOut<T>(out, weights, keys + kKeysBytes / 2, shared + Layout::kOnes);
    const bool fits = IsInRange<T>(sums.sum[0]) && IsInRange<T>(sums.sum[1]);
    const int query = item.at.w * 2 * kHopperShortQueries + start + warp_row;
    if (ElectOne()) StoreTensorWaitRead();  // O of the item before has left
    WgmmaWait<0>();
    PinRegisters(out);
    if (__all_sync(0xFFFFFFFFU, fits) == 0 && !SeesNoKey(terms)) {
      AttendAgain<T>(out, sums, tile, keys, terms, scale);
    }
    BarrierArrive(shared + Layout::kEmpty + slot * 8);
    __syncwarp();
    float inverse[2], log_sum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr float kLn2 = 0.693147180559945309F;
      const bool seen = sums.sum[half] > 0.0F;
      inverse[half] = seen ? FastInverse(out[kVectorValues + 2 * half]) : 0.0F;
      log_sum[half] = seen ? (sums.shift[half] + FastLog2(sums.sum[half])) * kLn2 : kInfinity;
    }
    WriteVectors<T, kHopperShortDim, kVectorPitch>(out_tile, out, inverse[0], inverse[1]);
    ring.Advance(step);
    begin();
    StoreOut(p, item, query, out_tile + warp_row * kVectorPitch, log_sum);
  }
  if (ElectOne()) StoreTensorWaitRead();
}

// The tile of ones beside V; by the computing warps, with a barrier before it is read.
template <typename T>
__device__ __forceinline__ void WriteOnes(std::uint32_t ones) {
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < HopperShortForwardLayout::kOnesBytes / 16) {
    const std::uint32_t one = Pack(1.0F, 1.0F, T{});
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(ones + thread * 16), "r"(one)
                 : "memory");
    FenceAsyncProxy();
  }
}

template <typename T>
__global__ __launch_bounds__(
    HopperShortForwardLayout::kThreads,
    HopperShortForwardLayout::kBlocks) void HopperShortForwardKernel(const __grid_constant__
                                                                         HopperShortParams p) {
  using Layout = HopperShortForwardLayout;
  constexpr int kBegun = 1;  // a barrier: the ring is there
  extern __shared__ unsigned char memory[];
  __shared__ RingItem items[Layout::kStages];
  const std::uint32_t shared =
      (SharedAddress(memory) + Layout::kAlignment - 1) / Layout::kAlignment * Layout::kAlignment;
  const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp < 4 * Layout::kWarpgroups) {
    if (warp == 0 && ElectOne()) PrefetchTensorMap(p.out_map);
    __syncwarp();
    WriteOnes<T>(shared + Layout::kOnes);
    NamedBarrierSync(kBegun, Layout::kThreads);
    TakeRegisters<Layout::kComputeRegisters>();
    AttendItems<T>(p, shared, items, warp);
    return;
  }
  GiveUpRegisters<Layout::kOtherRegisters>();
  if (warp == Layout::kCopyWarp) {
    const ItemWalk first(p, static_cast<int>(blockIdx.x));
    if (ElectOne()) BeginRing(p, shared);
    __syncwarp();
    NamedBarrierArrive(kBegun, Layout::kThreads);  // the first copies do not wait for the others
    if (ElectOne()) CopyItems(p, shared, items, first);
  } else {
    if (warp == 4 * Layout::kWarpgroups && ElectOne()) ItemDealer::Begin(p);
    __syncwarp();
    TermsWriter<T> writer(p, warp - 4 * Layout::kWarpgroups);
    NamedBarrierSync(kBegun, Layout::kThreads);
    writer.Run(p, shared, items);
  }
}

}  // namespace megafold::cuda
