// What the Hopper forward for short keys does with queries whose sum of exponentials is out of
// range: once more, with their maximum taken off.
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/short_keys_sm90/evo_attention_common.cuh"

namespace megafold::cuda {

// What is subtracted from a query's scores in the exponent when their maximum is taken off; 0 where
// it sees no key.
__device__ __forceinline__ float ShiftOf(float maximum, float scale) {
  maximum = MaximumOfQuad(maximum);
  return maximum < kShortHidden / 2 ? 0.0F : maximum * scale;
}

// The number of V's columns in the product with P: one more is 1, the sum of p as it was rounded,
// by which O is divided, so that a query that sees one key gets exactly its V. Seven are not used.
inline constexpr int kWideDim = kHopperShortDim + 8;
inline constexpr int kWideValues = kWideDim / 2;

// Of a thread's two queries.
struct ShortSums {
  float sum[2];    // of p
  float shift[2];  // p = 2^(x - shift)
};

// Terms of a thread's two of the eight keys from `key` on.
__device__ __forceinline__ float2 ReadTerms(std::uint32_t terms, int key) {
  const auto one = [&](int at) {
    std::uint32_t bits[2];
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(bits[0]), "=r"(bits[1])
                 : "r"(terms + at * 16));
    return __uint_as_float(bits[0] << 16) + __uint_as_float(bits[0] & 0xFFFF0000U) +
           __uint_as_float(bits[1] << 16);
  };
  const int mine = key + LaneId() % 4 * 2;
  return {one(mine), one(mine + 1)};
}

// Whether all keys are hidden from all queries.
__device__ __forceinline__ bool SeesNoKey(std::uint32_t terms) {
  float maximum = kShortHidden;
#pragma unroll
  for (int key = 0; key < kHopperShortKeys; key += 8 * 8) {
    const float2 pair = ReadTerms(terms, key + LaneId() / 4 * 8);
    maximum = fmaxf(maximum, fmaxf(pair.x, pair.y));
  }
  return __all_sync(0xFFFFFFFFU, maximum < kShortHidden / 2) != 0;
}

// O, times its divisor, of a warp's 16 queries once more, with their maximum taken off: by the
// warp's own products, since the block's other warps may not need it.
template <typename T>
__device__ __forceinline__ void AttendAgain(float (&out)[kWideValues], ShortSums& sums,
                                            std::uint32_t queries, std::uint32_t keys,
                                            std::uint32_t terms, float scale) {
  std::uint32_t q[kHopperShortDim / 16][4];
#pragma unroll
  for (int k = 0; k < kHopperShortDim / 16; ++k)
    LoadMatrix(q[k], VectorAddress<kVectorPitch>(queries, 2 * k));
  const auto compute_scores = [&](float(&s)[2][4], int key) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 pair = ReadTerms(terms, key + 8 * n);
      s[n][0] = s[n][2] = pair.x;
      s[n][1] = s[n][3] = pair.y;
    }
#pragma unroll
    for (int k = 0; k < kHopperShortDim / 16; ++k) {
      std::uint32_t r[4];
      LoadMatrix(r, VectorAddress<kVectorPitch>(keys, key, 2 * k));
      MmaInstruction(s[0], q[k], {r[0], r[2]}, T{});
      MmaInstruction(s[1], q[k], {r[1], r[3]}, T{});
    }
  };
  float maximum[2] = {-kInfinity, -kInfinity};
#pragma unroll 1
  for (int key = 0; key < kHopperShortKeys; key += 16) {
    float s[2][4];
    compute_scores(s, key);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      maximum[i / 2 % 2] = fmaxf(maximum[i / 2 % 2], s[i / 4][i % 4]);
    }
  }
  sums = {{}, {ShiftOf(maximum[0], scale), ShiftOf(maximum[1], scale)}};
  float o[kWideDim / 8][4] = {};
  const std::uint32_t values = keys + kKeysBytes / 2;
#pragma unroll 1
  for (int key = 0; key < kHopperShortKeys; key += 16) {
    float s[2][4];
    compute_scores(s, key);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& p = s[i / 4][i % 4];
      p = Exp2(fmaf(p, scale, -sums.shift[i / 2 % 2]));
      sums.sum[i / 2 % 2] += p;
    }
    const typename Mma<T>::A weights = Mma<T>::FromAccumulators(s[0], s[1]);
#pragma unroll
    for (int n = 0; n < kHopperShortDim / 8; n += 2) {
      std::uint32_t r[4];
      LoadMatrixTransposed(r, VectorAddress<kVectorPitch>(values, key, n));
      MmaInstruction(o[n], weights.r, {r[0], r[1]}, T{});
      MmaInstruction(o[n + 1], weights.r, {r[2], r[3]}, T{});
    }
    const std::uint32_t one = Pack(1.0F, 1.0F, T{});
    MmaInstruction(o[kHopperShortDim / 8], weights.r, {one, one}, T{});
  }
#pragma unroll
  for (int i = 0; i < kWideValues; ++i) out[i] = o[i / 4][i % 4];
  for (float& sum : sums.sum) sum = SumOfQuad(sum);
}

}  // namespace megafold::cuda
