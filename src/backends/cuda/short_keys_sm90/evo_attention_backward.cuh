// Backward of EvoAttention on Hopper where a row has at most 128 keys and no bias, in one pass:
// five products and one exponential a score. A block has 64 queries and all keys at a time, so that
//   S = Q K^T, dP = dO V^T        are whole rows in registers: delta is summed there, and
//   dQ = dS K                     takes dS from registers;
//   dV += P^T dO, dK += dS^T Q    take P and dS from shared memory, keys first.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_common.cuh"

namespace megafold::cuda {

// P or dS in shared memory: of each half of the keys 64 queries, rows of 128 bytes.
using WeightsDescriptor = TileDescriptor<128>;
inline constexpr int kWeightsHalf = 64 * 128;

struct HopperShortBackwardLayout {
  static constexpr int kStages = 4;  // of Q and dO
  static constexpr int kStageBytes = 2 * kVectorTileBytes;
  static constexpr int kKeys = kStages * kStageBytes;
  static constexpr int kWeights = kKeys + 2 * kKeysBytes;  // P, then dS
  static constexpr int kTerms = kWeights + 4 * kWeightsHalf;
  static constexpr int kOut = kTerms + 2 * kTermBytes;
  static constexpr int kBarriers = kOut + kVectorTileBytes;
  static constexpr int kBytes = kBarriers + (kStages + 2) * 8 + 1024;  // alignment
  static constexpr int kBlocks = 2;                                    // of a multiprocessor
  static constexpr int kThreads = 128;
  static_assert(kBlocks * (kBytes + 1024) <= 228 * 1024);
};

// dV or dK of both halves of the keys += W^T B for W = P or dS; queued.
template <typename T>
__device__ __forceinline__ void MultiplyTransposed(float (&c)[2][kVectorValues],
                                                   std::uint32_t weights, std::uint32_t vectors,
                                                   bool accumulate) {
  const std::uint32_t right = VectorDescriptor::Low(vectors);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t left = WeightsDescriptor::Low(weights + half * kWeightsHalf);
#pragma unroll
    for (int k = 0; k < kHopperShortQueries / 16; ++k) {
      Wgmma<T, kHopperShortDim>::template Run<Order::kMnMajor, Order::kMnMajor>(
          c[half], WeightsDescriptor::FromLow(left + k * WeightsDescriptor::kStepMnMajor),
          VectorDescriptor::FromLow(right + k * VectorDescriptor::kStepMnMajor),
          accumulate || k > 0);
    }
  }
}

// Of these warps one lane each copies Q and dO, copies K and V and stores dK and dV, and stores dQ.
inline constexpr int kQueriesWarp = 0, kKeysWarp = 1, kStoreWarp = 2;

// A block's walk over the query tiles of its items.
struct QueryStep : ItemWalk {
  int tile = 0;
  using ItemWalk::ItemWalk;
  __device__ __forceinline__ void Advance(const HopperShortParams& p) {
    if (++tile < p.query_tiles) return;
    tile = 0;
    ItemWalk::Advance(p);
  }
};

template <typename T>
__global__ __launch_bounds__(
    HopperShortBackwardLayout::kThreads,
    HopperShortBackwardLayout::kBlocks) void HopperShortBackwardKernel(const __grid_constant__
                                                                           HopperShortParams p) {
  using Layout = HopperShortBackwardLayout;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = LaneId();
  const std::uint32_t full = shared + Layout::kBarriers;
  const std::uint32_t keys_full = full + Layout::kStages * 8;
  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;

  const auto copy_queries = [&](const QueryStep& step, int stage) {
    const ItemPlace& at = step.at;
    const std::uint32_t to = shared + stage * Layout::kStageBytes;
    const std::uint32_t barrier = full + stage * 8;
    const int token = step.tile * kHopperShortQueries;
    BarrierExpect(barrier, Layout::kStageBytes);
    CopyTensor(to, p.q_map, 0, token, at.head, at.row, at.batch, barrier);
    CopyTensor(to + kVectorTileBytes, p.dout_map, 0, token, at.head, at.row, at.batch, barrier);
  };
  const auto copy_keys = [&](const ItemPlace& at, int parity) {
    BarrierExpect(keys_full + parity * 8, kKeysBytes);
    CopyShortKeys(p, at, shared + Layout::kKeys + parity * kKeysBytes, keys_full + parity * 8);
  };
  const auto terms_of = [&](int parity) { return shared + Layout::kTerms + parity * kTermBytes; };
  const int warp_row = thread / 32 * 16;
  // The log-sum-exp of this thread's two queries; past the last one +inf, so that p is 0.
  float next_lse[2];
  const auto read_lse = [&](const QueryStep& step) {
    const int query = step.tile * kHopperShortQueries + warp_row + lane / 4;
    const float* from = step.Lse(p) + query;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool inside = step.Inside(p) && query + half * 8 < p.queries;
      next_lse[half] = inside ? from[half * 8] : kInfinity;
    }
  };

  QueryStep now(p, static_cast<int>(blockIdx.x));
  QueryStep next = now;  // whose Q and dO are copied
  const int warp = __shfl_sync(0xFFFFFFFFU, thread / 32, 0);
  if (warp == kQueriesWarp && ElectOne()) {
    for (int i = 0; i < Layout::kStages + 2; ++i) BarrierInit(full + i * 8, 1);
    BarrierInitFence();
    copy_keys(now.at, 0);
    copy_queries(now, 0);
  }
  __syncwarp();
  ItemWalk next_item = now;  // whose K and V are copied
  next_item.Advance(p);
  std::uint32_t mask_bits = ItemMaskBits<T>(p, now.at, thread);
  read_lse(now);
  WriteTerm<T>(terms_of(0), p, thread, mask_bits, inverse_scale);
  __syncthreads();
  // What else is ahead of the work is copied once the first tile has come, which it would delay.
  BarrierWait(full, 0);
  for (int stage = 1; stage < Layout::kStages - 1; ++stage) {
    next.Advance(p);
    if (warp == kQueriesWarp && next.Inside(p) && ElectOne()) copy_queries(next, stage);
    __syncwarp();
  }
  next.Advance(p);
  RingPosition<Layout::kStages> ring;
  int parity = 0;  // of the item
  std::uint32_t keys_phase = 0;
  const std::uint32_t staging = shared + Layout::kOut;
  const std::uint32_t weights = shared + Layout::kWeights;
  const std::uint32_t weights_row = weights + (warp_row + lane % 16) * 128;
  float dk[2][kVectorValues], dv[2][kVectorValues];
  while (now.Inside(p)) {
    if (now.tile == 0) {
      mask_bits = next_item.Inside(p) ? ItemMaskBits<T>(p, next_item.at, thread) : 0;
      BarrierWait(keys_full + parity * 8, keys_phase);
    }
    const float lse[2] = {next_lse[0] * kLog2E, next_lse[1] * kLog2E};
    QueryStep following = now;
    following.Advance(p);
    read_lse(following);
    const std::uint32_t keys = shared + Layout::kKeys + parity * kKeysBytes;
    const std::uint32_t values = keys + 2 * kVectorTileBytes;
    const std::uint32_t queries = shared + ring.stage * Layout::kStageBytes;
    float s[kRowScores], dp[kRowScores];
    BarrierWait(full + ring.stage * 8, ring.FullParity());
    WgmmaFence();
    StartScores(s, terms_of(parity));
    MultiplyVectors<T, kHopperShortDim, kVectorPitch>(s, queries, keys, true);
    WgmmaCommit();
    MultiplyVectors<T, kHopperShortDim, kVectorPitch>(dp, queries + kVectorTileBytes, values,
                                                      false);
    WgmmaCommit();
    WgmmaWait<1>();
    PinRegisters(s);
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kRowScores; ++i) {
      s[i] = Exp2(fmaf(s[i], scale, -lse[i / 2 % 2]));
      sum[i % 4] += s[i];
    }
    WgmmaWait<0>();
    PinRegisters(dp);
    // All threads are past the step before; K and V are overwritten once dK and dV, which the same
    // thread stored from there, have left.
    if (warp == kQueriesWarp && next.Inside(p) && ElectOne()) {
      copy_queries(next, (ring.stage + Layout::kStages - 1) % Layout::kStages);
    }
    if (warp == kKeysWarp && ElectOne()) {
      StoreTensorWaitRead();
      if (now.tile == 0 && next_item.Inside(p)) copy_keys(next_item.at, parity ^ 1);
    }
    if (warp == kStoreWarp && ElectOne()) StoreTensorWaitRead();
    __syncwarp();
    next.Advance(p);
    ring.Advance();
    // delta is the sum of p dp over that of p: with one key p is 1 but for the rounding of lse, and
    // dS should be 0.
    float product[4] = {};
#pragma unroll
    for (int i = 0; i < kRowScores; ++i) product[i % 4] = fmaf(s[i], dp[i], product[i % 4]);
    float delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      delta[half] = SumOfQuad(product[2 * half] + product[2 * half + 1]) *
                    InverseOf(SumOfQuad(sum[2 * half] + sum[2 * half + 1]));
    }
    std::uint32_t gradients[kHopperShortKeys / 16][4];
#pragma unroll
    for (int k = 0; k < kHopperShortKeys / 16; ++k) {
      const std::uint32_t to =
          weights_row + k / 4 * kWeightsHalf + ((k % 4 * 2 + lane / 16) ^ (lane % 8)) * 16;
      std::uint32_t rounded[4];
      ScoresAsA<T>(rounded, s, k);
      StoreMatrix(to, rounded[0], rounded[1], rounded[2], rounded[3]);
#pragma unroll
      for (int i = 8 * k; i < 8 * k + 8; ++i) dp[i] = s[i] * (dp[i] - delta[i / 2 % 2]);
      ScoresAsA<T>(gradients[k], dp, k);
      StoreMatrix(to + 2 * kWeightsHalf, gradients[k][0], gradients[k][1], gradients[k][2],
                  gradients[k][3]);
    }
    FenceAsyncProxy();
    __syncthreads();
    float dq[kVectorValues];
    const std::uint32_t right = VectorDescriptor::Low(keys);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kHopperShortKeys / 16; ++k) {
      Wgmma<T, kHopperShortDim>::template Run<Order::kMnMajor>(
          dq, gradients[k], VectorDescriptor::FromLow(right + k * VectorDescriptor::kStepMnMajor),
          k > 0);
    }
    WgmmaCommit();
    MultiplyTransposed<T>(dv, weights, queries + kVectorTileBytes, now.tile > 0);
    MultiplyTransposed<T>(dk, weights + 2 * kWeightsHalf, queries, now.tile > 0);
    WgmmaCommit();
    WgmmaWait<1>();
    PinRegisters(dq);
    WriteVectors<T, kHopperShortDim, kVectorPitch>(staging, dq, p.scale, p.scale);
    FenceAsyncProxy();
    WgmmaWait<0>();
    PinRegisters(dk[0]);
    PinRegisters(dk[1]);
    PinRegisters(dv[0]);
    PinRegisters(dv[1]);
    const bool last = now.tile + 1 == p.query_tiles;
    if (last) WriteTerm<T>(terms_of(parity ^ 1), p, thread, mask_bits, inverse_scale);
    __syncthreads();
    const ItemPlace& at = now.at;
    if (warp == kStoreWarp && p.dq.data != nullptr && ElectOne()) {
      StoreTensor(p.dq_map, staging, 0, now.tile * kHopperShortQueries, at.head, at.row, at.batch);
      StoreTensorCommit();
    }
    __syncwarp();
    if (last) {
      // dK and dV leave from where K and V were.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        WriteVectors<T, kHopperShortDim, kVectorPitch>(keys + half * kVectorTileBytes, dk[half],
                                                       p.scale, p.scale);
        WriteVectors<T, kHopperShortDim, kVectorPitch>(values + half * kVectorTileBytes, dv[half],
                                                       1.0F, 1.0F);
      }
      FenceAsyncProxy();
      __syncthreads();
      if (warp == kKeysWarp && ElectOne()) {
        if (p.dk.data != nullptr) StoreTensor(p.dk_map, keys, 0, 0, at.head, at.row, at.batch);
        if (p.dv.data != nullptr) StoreTensor(p.dv_map, values, 0, 0, at.head, at.row, at.batch);
        StoreTensorCommit();
      }
      __syncwarp();
      keys_phase ^= static_cast<std::uint32_t>(parity);
      parity ^= 1;
      next_item.Advance(p);
    }
    now = following;
  }
  if ((warp == kKeysWarp || warp == kStoreWarp) && ElectOne()) StoreTensorWaitRead();
}

}  // namespace megafold::cuda
