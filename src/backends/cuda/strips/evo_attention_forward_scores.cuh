// The forward in strips: what is added to the scores of a warp's strip, and their softmax
// (evo_attention_forward.cuh).
#pragma once

#include "backends/cuda/strips/strips.cuh"

namespace megafold::cuda {

// ---- The bias of a lane's queries and keys. ----

// Reads in the order of the program: what is wanted first arrives first.
__device__ __forceinline__ void ReadInOrder(std::uint32_t* to, const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}
__device__ __forceinline__ void ReadHalfInOrder(std::uint32_t* to, const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "l"(from));
}

// Eight words for each query, float32 or, as long as they are on their way, 16-bit pairs in the
// first four.
template <typename T, int kTiles, bool kRows>
struct StripBias {
  std::uint32_t word[kTiles * 2][8];

  __device__ __forceinline__ void Load(const StripProblem& p, char* staged, int first_query,
                                       int first_key) {
    const char* const bias = StripBase<kRows>(p.bias, p.bias_head, p.row.bias);
    if (p.bias_kind == TermKind::kNone) return;
    const int g = LaneId() / 4, keys = LaneId() % 4 * 4;
    if (!p.bias_vectors) {
      StageBias(p, staged, kStrip, kTiles * 16, kStrip, bias, first_query, first_key);
      TakeStaged(p, staged, g, keys);
      return;
    }
    // The first key of a lane's four and of its other four.
    const int first = min(first_key + keys, p.keys - 4);
    const int second = min(first_key + keys + 16, p.keys - 4);
    const std::uint32_t bytes = p.bias_kind == TermKind::kFloat32 ? 4 : 2;
    const auto offset = static_cast<std::uint32_t>(first) * bytes;
    const auto between = static_cast<std::uint32_t>(second - first) * bytes;
    const std::uint32_t stride = p.bias_query * bytes;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      const int row = min(first_query + i * 8 + g, p.queries - 1);
      const char* const from = bias + offset + VectorOffset(row, stride);
      if (p.bias_kind == TermKind::kFloat32) {
        ReadInOrder(word[i], from);
        ReadInOrder(word[i] + 4, from + between);
      } else {
        ReadHalfInOrder(word[i], from);
        ReadHalfInOrder(word[i] + 2, from + between);
      }
    }
  }

  // Makes float32 of it.
  __device__ __forceinline__ void Widen(const StripProblem& p) {
    if (p.bias_kind == TermKind::kFloat32) return;
    if (p.bias_kind == TermKind::kNone) {
#pragma unroll
      for (int i = 0; i < kTiles * 16; ++i) word[i / 8][i % 8] = 0;
      return;
    }
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
#pragma unroll
      for (int j = 3; j >= 0; --j) {
        const float2 pair = ReadPair(reinterpret_cast<const T*>(&word[i][j]));
        word[i][j * 2] = __float_as_uint(pair.x);
        word[i][j * 2 + 1] = __float_as_uint(pair.y);
      }
    }
  }

  // Scores of tile m become scale s + bias.
  __device__ __forceinline__ void Add(float scale, int m, float (&s)[4][4]) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& x = s[i / 4][i % 4];
      x = fmaf(x, scale, __uint_as_float(word[m * 2 + i / 2 % 2][i / 4 * 2 + i % 2]));
    }
  }

 private:
  __device__ __forceinline__ void TakeStaged(const StripProblem& p, const char* staged, int g,
                                             int keys) {
    const bool wide = p.bias_kind == TermKind::kFloat32;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      const int at = (i * 8 + g) * kStrip + keys;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (wide) {
          const auto x = *reinterpret_cast<const uint4*>(staged + (at + half * 16) * 4);
          word[i][half * 4] = x.x;
          word[i][half * 4 + 1] = x.y;
          word[i][half * 4 + 2] = x.z;
          word[i][half * 4 + 3] = x.w;
        } else {
          const auto x = *reinterpret_cast<const uint2*>(staged + (at + half * 16) * 2);
          word[i][half * 2] = x.x;
          word[i][half * 2 + 1] = x.y;
        }
      }
    }
  }
};

// ---- The mask's terms of a lane's keys. ----

class StripTerms {
 public:
  // `term` is that of the lane's key of the strip, in the keys' own order.
  __device__ __forceinline__ explicit StripTerms(float term)
      : any_(__any_sync(0xFFFFFFFFU, term != 0.0F)) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      term_[i] = __shfl_sync(0xFFFFFFFFU, term, i / 4 * 16 + LaneId() % 4 * 4 + i % 4);
    }
  }
  __device__ __forceinline__ void Add(float (&s)[4][4]) const {
    if (!any_) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i / 4][i % 4] += term_[i / 4 * 2 + i % 2];
  }

 private:
  bool any_;  // of the strip's keys has one
  float term_[8];
};

// ---- Softmax over a warp's keys. ----

// Maximum and sum of a lane's queries over the keys that its warp has seen; the sum is the lane's.
template <int kTiles>
struct StripSoftmax {
  float maximum[kTiles][2], sum[kTiles][2];

  // Turns tile m's scores into p. After the first strip, `out` follows the maximum.
  template <int kOut>
  __device__ __forceinline__ void Run(int m, float (&s)[4][4], float (&out)[kOut][4], bool first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = first ? -kInfinity : maximum[m][half];
#pragma unroll
      for (int j = 0; j < 4; ++j) best = fmaxf(best, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 2));
      const float shift = best == -kInfinity ? 0.0F : best;
      if (first) {
        sum[m][half] = 0.0F;
      } else {
        const float factor = StripExp(maximum[m][half], shift);
        sum[m][half] *= factor;
#pragma unroll
        for (int n = 0; n < kOut; ++n) {
          out[n][half * 2] *= factor;
          out[n][half * 2 + 1] *= factor;
        }
      }
      maximum[m][half] = best;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = s[i / 2][half * 2 + i % 2];
        x = StripExp(x, shift);
        sum[m][half] += x;
      }
    }
  }
};

}  // namespace megafold::cuda
