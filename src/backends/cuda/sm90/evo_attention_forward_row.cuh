// Forward of EvoAttention on Hopper: what a warpgroup keeps of one row, and what is done with it
// that is not a product: exponentials, the shift's fit, the end (evo_attention_forward.cuh).
#pragma once

#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

// What a thread adds to a query's sum in a step (16 keys), at most, and what its sum has to reach
// before the query's shift has been fitted to its scores: float16 holds p from 6e-5 to 65504.
inline constexpr float kLargestSum = 1024.0F;
inline constexpr float kLeastSum = 1.0F / 64.0F;
inline constexpr float kHidden = -131072.0F;  // in log2 units, -90,852 in natural ones

// One row of a warpgroup's 64 queries. A thread has two queries: lane / 4 of its warp's 16, and
// that + 8. The sums are those of the thread's own keys.
template <int kDim>
struct ForwardRow {
  // First written by the product of the first tile: the matrix units would wait for ordinary
  // instructions that write accumulators.
  float out[kDim / 2];
  float shift[2], sum[2];
  float least;  // what `sum` must reach; -1 once both shifts are fitted
  std::uint32_t
      left[2];  // the thread's part of the left factor: its first eight columns, a query each

  // Before an item's first product; what the item before left is still there.
  __device__ __forceinline__ void ClearColumns() { left[0] = left[1] = LeftColumns(0.0F); }
  __device__ __forceinline__ void ClearSums() {
    shift[0] = shift[1] = 0.0F;
    sum[0] = sum[1] = 0.0F;
    least = kLeastSum;
  }

  // Two of the columns {x in three parts, 1, 1, 1, 0, 0} by the lane's place in its quad.
  static __device__ __forceinline__ std::uint32_t LeftColumns(float x) {
    const float high = __bfloat162float(__float2bfloat16_rn(x));
    const float middle = __bfloat162float(__float2bfloat16_rn(x - high));
    const int place = static_cast<int>(threadIdx.x) % 4;
    const float first = place == 0 ? high : place == 1 ? x - high - middle : 1.0F;
    const float second = place == 0 ? middle : 1.0F;
    return place == 3 ? 0U : Pack(first, second, __nv_bfloat16{});
  }

  // Fits the shifts to the scores x, which have the present ones off, and takes the change off x. A
  // shift that has served for keys only grows. Scores below kHidden are no keys at all: a shift to
  // there would leave nothing of <q, k> in the sums of the keys that follow. `first` says that
  // `out` holds nothing yet.
  __device__ __forceinline__ void Fit(float (&x)[kScores], bool first, float inverse_scale) {
    bool fitted = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = -kInfinity;
#pragma unroll
      for (int v = 0; v < kScores / 4; ++v) {
        best = fmaxf(best, fmaxf(x[4 * v + 2 * half], x[4 * v + 2 * half + 1]));
      }
      float served = sum[half];
#pragma unroll
      for (int lanes = 1; lanes <= 2; lanes *= 2) {
        best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, lanes));
        served = fmaxf(served, __shfl_xor_sync(0xFFFFFFFFU, served, lanes));
      }
      if (served > 0.0F) best = fmaxf(best, 0.0F);
      if (!(shift[half] + best > kHidden)) {
        best = 0.0F;
        fitted = false;
      }
      shift[half] += best;
      left[half] = LeftColumns(-shift[half] * inverse_scale);
#pragma unroll
      for (int v = 0; v < kScores / 4; ++v) {
        x[4 * v + 2 * half] -= best;
        x[4 * v + 2 * half + 1] -= best;
      }
      const float factor = served > 0.0F ? Exp2(-best) : 0.0F;
      sum[half] *= factor;
      if (first) continue;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        out[4 * i + 2 * half] *= factor;
        out[4 * i + 2 * half + 1] *= factor;
      }
    }
    if (fitted) least = -1.0F;
  }

  // Whether some query of the warp needs a fit after the sums of a step; the same in every lane.
  // Written so that NaN counts.
  __device__ __forceinline__ bool NeedsFit(const float (&step)[2]) const {
    const bool fits = step[0] <= kLargestSum && step[1] <= kLargestSum &&
                      sum[0] + step[0] >= least && sum[1] + step[1] >= least;
    return __any_sync(0xFFFFFFFFU, !fits) != 0;
  }
};

// p = 2^x as the A operand of P V, and the sums of the thread's two queries.
template <typename T>
__device__ __forceinline__ void Exponentials(std::uint32_t (&p)[kScores / 2], float (&sum)[2],
                                             const float (&x)[kScores]) {
#pragma unroll
  for (int v = 0; v < kScores / 4; ++v) {
    const float p0 = Exp2(x[4 * v]);
    const float p1 = Exp2(x[4 * v + 1]);
    const float p2 = Exp2(x[4 * v + 2]);
    const float p3 = Exp2(x[4 * v + 3]);
    sum[0] = v == 0 ? p0 : sum[0] + p0;
    sum[1] = v == 0 ? p2 : sum[1] + p2;
    sum[0] += p1;
    sum[1] += p3;
    p[2 * v] = Pack(p0, p1, T{});
    p[2 * v + 1] = Pack(p2, p3, T{});
  }
}

// What a row's sums make of it: factors for the outputs of the thread's two queries, and their
// log-sum-exps.
struct ForwardEnd {
  float factor[2], lse[2];
  // Whether shifts of 0 cost nothing: the thread's own sums are in range. One of a quad that has
  // none means that the query may see a single key, and is to get exactly its V.
  bool safe = true;

  template <int kDim>
  __device__ __forceinline__ explicit ForwardEnd(const ForwardRow<kDim>& row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr float kLn2 = 0.69314718055994530942F;
      constexpr float kBound = 0x1p60F;
      float sum = row.sum[half];
      safe = safe && sum >= 1.0F / kBound && sum <= kBound;
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
      factor[half] = sum > 0.0F ? FastInverse(sum) : 0.0F;
      lse[half] = sum > 0.0F ? (row.shift[half] + FastLog2(sum)) * kLn2 : kInfinity;
    }
  }
};

}  // namespace megafold::cuda
