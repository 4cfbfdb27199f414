// Forward of EvoAttention for small grids of long vectors: a block owns queries of one head, four
// warps share the keys; each has its own maximum, sum and O, which are combined at the end.
#pragma once

#include <algorithm>

#include "backends/cuda/spread/evo_attention_common.cuh"

namespace megafold::cuda {

// Maximum and sum of a lane's two queries over the keys that the lane's warp has seen; the sum is
// the lane's own.
struct SpreadSoftmax {
  static constexpr float kSlack = 5.5F;  // p stays below e^kSlack
  float maximum[2] = {-kInfinity, -kInfinity};
  float sum[2] = {};

  // Turns scores into p. The maximum, and `out` with it, moves when a score passes it by kSlack.
  template <int kOTiles>
  __device__ __forceinline__ void Run(SpreadScores& s, float (&out)[1][kOTiles][4]) {
    float best[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[half] = fmaxf(fmaxf(s[0][0][half * 2], s[0][0][half * 2 + 1]),
                         fmaxf(s[0][1][half * 2], s[0][1][half * 2 + 1]));
    }
    if (__any_sync(0xFFFFFFFFU, best[0] > maximum[0] + kSlack || best[1] > maximum[1] + kSlack)) {
      Raise(best, out);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = maximum[half] == -kInfinity ? 0.0F : maximum[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = s[0][i / 2][half * 2 + i % 2];
        x = SpreadExp(x, shift);
        sum[half] += x;
      }
    }
  }

 private:
  template <int kOTiles>
  __device__ __forceinline__ void Raise(const float (&candidate)[2], float (&out)[1][kOTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = candidate[half];
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 2));
      best = fmaxf(best, maximum[half]);
      const float factor = maximum[half] == -kInfinity ? 0.0F : SpreadExp(maximum[half], best);
      maximum[half] = best;
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < kOTiles; ++n) {
        out[0][n][half * 2] *= factor;
        out[0][n][half * 2 + 1] *= factor;
      }
    }
  }
};

// What the parts of a query weigh, from {maximum, sum} of each part; stores the log-sum-exp.
__device__ __forceinline__ PartFactors CombineStatistics(const float2* statistics, float* lse,
                                                         bool stores) {
  float2 each[kSpreadParts];
  float best = -kInfinity;
#pragma unroll
  for (int part = 0; part < kSpreadParts; ++part) {
    each[part] = statistics[part * 16];
    best = fmaxf(best, each[part].x);
  }
  const float shift = best == -kInfinity ? 0.0F : best;
  PartFactors factors;
  float sum = 0.0F;
#pragma unroll
  for (int part = 0; part < kSpreadParts; ++part) {
    factors.part[part] = SpreadExp(each[part].x, shift);
    sum = fmaf(factors.part[part], each[part].y, sum);
  }
  const float inverse = sum > 0.0F ? 1.0F / sum : 0.0F;
#pragma unroll
  for (int part = 0; part < kSpreadParts; ++part) factors.part[part] *= inverse;
  if (stores) *lse = sum > 0.0F ? shift + logf(sum) : kInfinity;
  return factors;
}

// Combines the parts' O through shared memory and stores O and the log-sum-exp.
template <typename T, int kDim>
__device__ __forceinline__ void StoreForward(const SpreadParams& p, const SpreadPlace& place,
                                             const RowIndex& at, char* shared,
                                             const float (&out)[1][kDim / 8][4],
                                             const SpreadSoftmax& state) {
  PartSums<kDim> sums(shared);
  auto* const statistics = reinterpret_cast<float2*>(shared + PartSums<kDim>::Bytes(p.tiles)) +
                           place.tile * kSpreadParts * 16;
  __syncthreads();  // the keys have been read
  sums.Put(place, out);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
    if (LaneId() % 4 == 0) {
      statistics[place.part * 16 + half * 8 + LaneId() / 4] = make_float2(state.maximum[half], sum);
    }
  }
  __syncthreads();
  float* const lse = p.lse + StatisticBase(p, at, place.head) + place.first;
  sums.Store(
      place, RowBase<T>(p.out, at, place.head) + place.first * p.out.token, p.out.token, p.dim,
      [&](int row, bool first) { return CombineStatistics(statistics + row, lse + row, first); });
}

template <typename T, int kDim>
__global__ __launch_bounds__(SpreadMaxTiles(kDim) * kTileThreads) void SpreadForwardKernel(
    const __grid_constant__ SpreadParams p) {
  extern __shared__ __align__(128) char shared[];
  const SpreadPlace place(p, static_cast<int>(blockIdx.x), p.queries);
  const SpreadRow row(p, blockIdx.z);
  const RowIndex at = row.At();

  typename Mma<T>::A q[1][kDim / 16];
  LoadStationary<T>(q, RowBase<const T>(p.q, at, place.head) + place.first * p.q.token, p.q.token,
                    place.count, p.dim, true);
  float out[1][kDim / 8][4] = {};
  SpreadSoftmax state;
  KeyRound<T, kDim> keys(shared, p, place.tile);
#pragma unroll 1
  for (int round = 0; round < p.key_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    keys.Load(p, row, place, round);
    if (place.count == 0) continue;
    const int begin = place.part * p.key_side.step;
#pragma unroll 2
    for (int key = begin; key < begin + p.key_side.step; key += 16) {
      SpreadScores s = {};
      keys.Scores(s, p, q, key);
      state.Run(s, out);
      MultiplyScores<T, 1, 2, kDim / 8, keys.kPitch>(out, s, keys.v + key * keys.kPitch);
    }
  }
  StoreForward<T, kDim>(p, place, at, shared, out, state);
}

template <typename T, int kDim>
int SpreadForwardBytes(const SpreadParams& p) {
  return std::max(KeyRound<T, kDim>::Bytes(p),
                  PartSums<kDim>::Bytes(p.tiles) + p.tiles * kSpreadParts * 16 * 8);
}

template <typename T, int kDim>
void LaunchSpreadForward(const SpreadParams& p, cudaStream_t stream) {
  Launch("evo_attention forward (cuda sm80 spread)", SpreadForwardKernel<T, kDim>,
         SpreadShape(p, p.query_blocks, SpreadForwardBytes<T, kDim>(p)), stream, p);
}

}  // namespace megafold::cuda
