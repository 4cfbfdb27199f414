// Forward of EvoAttention for small grids: a block owns queries of one head, four warps share the
// keys; each has its own maximum, sum and O, which are combined at the end.
#pragma once

#include <algorithm>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/spread/evo_attention_common.cuh"

namespace megafold::cuda {

// Maximum and sum of a lane's two queries.
struct SpreadSoftmax {
  float maximum[2] = {-kInfinity, -kInfinity};
  float sum[2] = {};

  // Turns scores, of which `pairs` are there, into p and rescales what was summed before.
  template <int kPairs, int kOTiles>
  __device__ __forceinline__ void Run(SpreadScores<kPairs>& x, int pairs,
                                      float (&out)[1][kOTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = maximum[half];
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        if (k >= pairs) break;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          best = fmaxf(best, fmaxf(x[k][0][n][half * 2], x[k][0][n][half * 2 + 1]));
        }
      }
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 2));
      const float shift = best == -kInfinity ? 0.0F : best;
      const float factor = SpreadExp(maximum[half], shift);
      maximum[half] = best;
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < kOTiles; ++n) {
        out[0][n][half * 2] *= factor;
        out[0][n][half * 2 + 1] *= factor;
      }
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        if (k >= pairs) break;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = x[k][0][i / 2][half * 2 + i % 2];
          score = SpreadExp(score, shift);
          sum[half] += score;
        }
      }
    }
  }
};

// Combines the parts' O through shared memory and stores O and the log-sum-exp.
template <typename T, int kDim>
__device__ __forceinline__ void StoreForward(const SpreadParams& p, const SpreadPlace& place,
                                             const RowIndex& at, char* shared,
                                             const float (&out)[1][kDim / 8][4],
                                             SpreadSoftmax& state) {
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
  sums.Store(place, RowBase<T>(p.out, at, place.head) + place.first * p.out.token, p.out.token,
             p.dim, [&](int row) {
               float maximum[kSpreadParts], factor[kSpreadParts];
               float best = -kInfinity;
               float sum = 0.0F;
#pragma unroll
               for (int part = 0; part < kSpreadParts; ++part) {
                 maximum[part] = statistics[part * 16 + row].x;
                 best = fmaxf(best, maximum[part]);
               }
               const float shift = best == -kInfinity ? 0.0F : best;
#pragma unroll
               for (int part = 0; part < kSpreadParts; ++part) {
                 factor[part] = SpreadExp(maximum[part], shift);
                 sum = fmaf(factor[part], statistics[part * 16 + row].y, sum);
               }
               const float inverse = sum > 0.0F ? 1.0F / sum : 0.0F;
               lse[row] = sum > 0.0F ? shift + logf(sum) : kInfinity;
               return make_float4(factor[0] * inverse, factor[1] * inverse, factor[2] * inverse,
                                  factor[3] * inverse);
             });
}

template <typename T, int kDim>
__global__ __launch_bounds__(kSpreadThreads) void SpreadForwardKernel(
    const __grid_constant__ SpreadParams p) {
  constexpr int kPairs = SpreadForwardStep(kDim) / 16;
  constexpr int kPitch = kTilePitch<T, kDim>;
  extern __shared__ __align__(128) char shared[];
  const SpreadPlace place(p, blockIdx.x, p.queries, p.rows);
  const RowIndex at(p, place.group, place.row);
  const int step = p.key_side.step;

  typename Mma<T>::A q[1][kDim / 16];
  LoadStationary<T>(q, RowBase<const T>(p.q, at, place.head) + place.first * p.q.token, p.q.token,
                    place.count, p.dim, true);
  float out[1][kDim / 8][4] = {};
  SpreadSoftmax state;
  KeyRound<T, kDim> keys(shared, step);
  const int pairs = step / 16;
#pragma unroll 1
  for (int round = 0; round < p.key_side.rounds; ++round) {
    if (round > 0) __syncthreads();
    SpreadScores<kPairs> x;
    keys.Load(x, p, at, place, round);
    if (place.count == 0) continue;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      if (k >= pairs) break;
      const int key = place.part * step + k * 16;
      AddScores<T, kDim>(x[k], q, keys.k + key * kPitch, p.scale);
      AddColumnTerm(x[k], keys.terms + key);
    }
    state.Run(x, pairs, out);
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      if (k >= pairs) break;
      MultiplyScores<T, 1, 2, kDim / 8, kPitch>(out, x[k],
                                                keys.v + (place.part * step + k * 16) * kPitch);
    }
  }
  StoreForward<T, kDim>(p, place, at, shared, out, state);
}

template <typename T, int kDim>
void LaunchSpreadForward(const SpreadParams& p, cudaStream_t stream) {
  const int end_bytes = PartSums<kDim>::Bytes(p.tiles) + p.tiles * kSpreadParts * 16 * 8;
  LaunchKernel(
      "evo_attention forward (cuda sm80 spread)", SpreadForwardKernel<T, kDim>, p.query_blocks,
      p.tiles * kSpreadParts * 32,
      static_cast<std::size_t>(std::max(KeyRound<T, kDim>::Bytes(p.key_side.step), end_bytes)),
      stream, p);
}

}  // namespace megafold::cuda
