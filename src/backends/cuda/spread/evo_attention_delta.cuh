// delta of EvoAttention's backward as sum_j p_j dp_j / sum_j p_j, which does not see the rounding
// of O to 16 bits. Blocks keep queries, as in the backward, and dp is computed as there, bit for
// bit: of a query that sees one key nothing is left of ds.
#pragma once

#include "backends/cuda/spread/evo_attention_backward.cuh"

namespace megafold::cuda {

template <typename T, int kDim>
__global__ __launch_bounds__(SpreadMaxTiles(kDim) * kTileThreads) void SpreadDeltaKernel(
    const __grid_constant__ SpreadParams p, float* __restrict__ delta) {
  extern __shared__ __align__(128) char shared[];
  const SpreadPlace place(p, static_cast<int>(blockIdx.x), p.queries);
  const SpreadRow row(p, blockIdx.z);
  const SpreadQueries<T, kDim, false> mine(p, row.At(), place);
  KeyRound<T, kDim> keys(shared, p, place.tile);
  float2 sum[2] = {};  // of p and p dp
#pragma unroll 1
  for (int round = 0; round < p.key_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    keys.Load(p, row, place, round);
    if (place.count == 0) continue;
    const int begin = place.part * p.key_side.step;
#pragma unroll 1
    for (int key = begin; key < begin + p.key_side.step; key += 16) {
      SpreadScores s = {}, dp = {};
      keys.Scores(s, p, mine.q, key);
      MultiplyByRows<T, 1, kDim / 16, 2, keys.kPitch>(dp, mine.dout, keys.v + key * keys.kPitch);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int half = i % 4 / 2;
        const float x = SpreadExp(s[0][i / 4][i % 4], mine.lse[half]);
        sum[half].x += x;
        sum[half].y = fmaf(x, dp[0][i / 4][i % 4], sum[half].y);
      }
    }
  }
  auto* const parts = reinterpret_cast<float2*>(shared) + place.tile * kSpreadParts * 16;
  __syncthreads();  // the keys have been read
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      sum[half].x += __shfl_xor_sync(0xFFFFFFFFU, sum[half].x, offset);
      sum[half].y += __shfl_xor_sync(0xFFFFFFFFU, sum[half].y, offset);
    }
    if (LaneId() % 4 == 0) parts[place.part * 16 + half * 8 + LaneId() / 4] = sum[half];
  }
  __syncthreads();
  if (place.thread >= place.count) return;
  float2 all = {};
#pragma unroll
  for (int part = 0; part < kSpreadParts; ++part) {
    const float2 x = parts[part * 16 + place.thread];
    all.x += x.x;
    all.y += x.y;
  }
  delta[StatisticBase(p, row.At(), place.head) + place.first + place.thread] =
      all.x > 0.0F ? all.y / all.x : 0.0F;
}

template <typename T, int kDim>
void LaunchSpreadDelta(const SpreadParams& p, float* delta, cudaStream_t stream) {
  const int blocks = (p.queries + p.tiles * 16 - 1) / (p.tiles * 16);
  const int bytes = std::max(KeyRound<T, kDim>::Bytes(p), p.tiles * kSpreadParts * 16 * 8);
  Launch("evo_attention delta (cuda sm80 spread)", SpreadDeltaKernel<T, kDim>,
         SpreadShape(p, blocks, bytes), stream, p, delta);
}

}  // namespace megafold::cuda
