// Forward of EvoAttention on Hopper where a row has at most 128 keys and no bias: all scores of 64
// queries are in registers at once, P goes from there into the product with V. An item is 128
// queries of a head of a row. Its warps meet once, when the copies of the next item begin.
#pragma once

#include <algorithm>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_forward_again.cuh"

namespace megafold::cuda {

struct HopperShortForwardLayout {
  static constexpr int kKeys = 2 * kVectorTileBytes;  // in a stage, after the queries
  static constexpr int kStageBytes = kKeys + kKeysBytes;
  // Terms of the keys of three items: they are written while the one before is worked on, and some
  // warps may still be at the one before that.
  static constexpr int kTermStages = 3;
  static constexpr int kTerms = 2 * kStageBytes;
  static constexpr int kOnes = kTerms + kTermStages * kTermBytes;  // of 16 keys, beside V
  static constexpr int kOnesBytes = 16 * kVectorPitch;
  static constexpr int kBarriers = kOnes + kOnesBytes;
  static constexpr int kAlignment = 512;     // of a swizzle
  static constexpr int kValuesFull = 2 * 8;  // after a stage's barrier, that of its V
  static constexpr int kBytes = kBarriers + 2 * kValuesFull + kAlignment;
  static constexpr int kBlocks = 4;  // of a multiprocessor
  static_assert(kBlocks * (kBytes + 1024) <= 228 * 1024);
};

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

template <typename T>
__global__ __launch_bounds__(
    kHopperShortThreads,
    HopperShortForwardLayout::kBlocks) void HopperShortForwardKernel(const __grid_constant__
                                                                         HopperShortParams p) {
  using Layout = HopperShortForwardLayout;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared =
      (SharedAddress(memory) + Layout::kAlignment - 1) / Layout::kAlignment * Layout::kAlignment;
  const int lane = LaneId();
  const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
  const std::uint32_t full = shared + Layout::kBarriers;
  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;

  const auto copy = [&](const ItemPlace& at, int parity) {
    const std::uint32_t to = shared + parity * Layout::kStageBytes;
    const std::uint32_t barrier = full + parity * 8;
    // V has a barrier of its own: the scores do not wait for it.
    BarrierExpect(barrier, Layout::kKeys + kKeysBytes / 2);
    CopyTensor(to, p.q_map, 0, at.part * 2 * kHopperShortQueries, at.head, at.row, at.batch,
               barrier);
    CopyTensor(to + Layout::kKeys, p.k_map, 0, 0, at.head, at.row, at.batch, barrier);
    BarrierExpect(barrier + Layout::kValuesFull, kKeysBytes / 2);
    CopyTensor(to + Layout::kKeys + kKeysBytes / 2, p.v_map, 0, 0, at.head, at.row, at.batch,
               barrier + Layout::kValuesFull);
  };
  const auto terms_of = [&](int stage) { return shared + Layout::kTerms + stage * kTermBytes; };

  if (threadIdx.x == 0) {
    PrefetchTensorMap(p.q_map);
    PrefetchTensorMap(p.k_map);
    PrefetchTensorMap(p.v_map);
    PrefetchTensorMap(p.out_map);
  }
  ItemWalk now(p);
  if (warp == 0 && ElectOne()) {
    for (int i = 0; i < 4; ++i) BarrierInit(full + i * 8, 1);
    BarrierInitFence();
    copy(now.at, 0);
  }
  __syncwarp();
  ItemWalk next = now;
  next.Advance(p);
  const ShortKeyMask mask(p, sizeof(T));
  const std::uint32_t first_bits = mask.Bits(p, now);
  const std::uint32_t one = Pack(1.0F, 1.0F, T{});
  static_assert(Layout::kOnesBytes == kHopperShortThreads * 8);
  asm volatile("st.shared.v2.b32 [%0], {%1, %1};" ::"r"(shared + Layout::kOnes +
                                                        static_cast<int>(threadIdx.x) * 8),
               "r"(one)
               : "memory");
  WriteTerm<T>(terms_of(0), p, first_bits, inverse_scale);
  __syncthreads();
  int term_stage = 0;
  for (int index = 0; now.Inside(p); ++index) {
    const int parity = index % 2;
    const std::uint32_t stage = shared + parity * Layout::kStageBytes;
    const std::uint32_t keys = stage + Layout::kKeys;
    const std::uint32_t next_bits = mask.Bits(p, next);
    const int first = now.at.part * 2 * kHopperShortQueries;
    float* const lse = now.Lse(p) + first;
    const int queries = p.queries - first;  // of the item, or more
    const std::uint32_t my_terms = terms_of(term_stage);
    term_stage = term_stage + 1 == Layout::kTermStages ? 0 : term_stage + 1;
    BarrierWait(full + parity * 8, index / 2 % 2);
#pragma unroll 1
    for (int start = 0; start < std::min(queries, 2 * kHopperShortQueries);
         start += kHopperShortQueries) {
      const std::uint32_t tile = stage + start * kVectorPitch;
      std::uint32_t q[kHopperShortDim / 16][4];
#pragma unroll
      for (int k = 0; k < kHopperShortDim / 16; ++k) LoadMatrix(q[k], VectorAddress(tile, 2 * k));
      float s[kRowScores];
      const std::uint32_t right = VectorDescriptor::Low(keys);
      WgmmaFence();
      StartScores(s, my_terms);
#pragma unroll
      for (int k = 0; k < kHopperShortDim / 16; ++k) {
        Wgmma<T, kHopperShortKeys>::template Run<Order::kKMajor>(
            s, q[k], VectorDescriptor::FromLow(right + k * VectorDescriptor::kStepKMajor), true);
      }
      WgmmaCommit();
      WgmmaWait<0>();
      PinRegisters(s);
      ShortSums sums = {};
      if constexpr (kTakesMaximum<T>) TakeMaximum(sums, s, scale);
      float sum[4] = {};
      std::uint32_t weights[kHopperShortKeys / 16][4];
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
      if (start == 0) {
        // The other stage is filled again when all warps are past it and their O has left it; after
        // the exponentials, since copies that begin earlier were slower.
        if (ElectOne()) StoreTensorWaitRead();
        WriteTerm<T>(terms_of(term_stage), p, next_bits, inverse_scale);
        __syncthreads();
        if (warp == 0 && next.Inside(p) && ElectOne()) copy(next.at, parity ^ 1);
        __syncwarp();
        BarrierWait(full + Layout::kValuesFull + parity * 8, index / 2 % 2);
      }
      float out[kWideValues];
      const std::uint32_t values =
          VectorDescriptor::Low(keys + kKeysBytes / 2, shared + Layout::kOnes);
      WgmmaFence();
#pragma unroll
      for (int k = 0; k < kHopperShortKeys / 16; ++k) {
        Wgmma<T, kWideDim>::template Run<Order::kMnMajor>(
            out, weights[k],
            VectorDescriptor::FromLow(values + k * VectorDescriptor::kStepMnMajorSameNext), k > 0);
      }
      WgmmaCommit();
      const int query = start + warp * kHopperShortOutRows;
      const bool fits = IsInRange<T>(sums.sum[0]) && IsInRange<T>(sums.sum[1]);
      WgmmaWait<0>();
      PinRegisters(out);
      if (__all_sync(0xFFFFFFFFU, fits) == 0 && !SeesNoKey(my_terms)) {
        AttendAgain<T>(out, sums, tile, keys, my_terms, scale);
      }
      float inverse[2], log_sum[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        constexpr float kLn2 = 0.693147180559945309F;
        const bool seen = sums.sum[half] > 0.0F;
        inverse[half] = seen ? FastInverse(out[kVectorValues + 2 * half]) : 0.0F;
        log_sum[half] = seen ? (sums.shift[half] + FastLog2(sums.sum[half])) * kLn2 : kInfinity;
      }
      // O takes the place of Q, of which a warp reads its own rows alone.
      WriteVectors<T>(tile, out, inverse[0], inverse[1]);
      FenceAsyncProxy();
      __syncwarp();
      if (query < queries && ElectOne()) {
        StoreTensor(p.out_map, tile + warp * kHopperShortOutRows * kVectorPitch, 0, first + query,
                    now.at.head, now.at.row, now.at.batch);
        StoreTensorCommit();
      }
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // after the fence, which would wait for it
        const int mine = query + half * 8 + lane / 4;
        if (lane % 4 == 0 && mine < queries) lse[mine] = log_sum[half];
      }
    }
    now = next;
    next.Advance(p);
  }
  if (ElectOne()) StoreTensorWaitRead();
}

}  // namespace megafold::cuda
