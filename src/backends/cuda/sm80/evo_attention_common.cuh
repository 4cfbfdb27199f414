// What the portable EvoAttention kernels share: where a row's operands start, the bias
// in shared memory, and stores of accumulators.
//
// Scores are x = scale <q, k> + bias + mask in natural units; p = 2^(x log2(e) - m log2(e)).
#pragma once

#include <cfloat>
#include <cstdint>

#include "backends/cuda/attention/fragment.cuh"
#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/sm80/evo_attention_params.h"

namespace megafold::cuda {

// Elements between the rows of a tile of bias that fragments read without bank conflicts: fragments
// whose rows are queries read pairs of keys, fragments whose rows are keys read single elements of
// two queries.
enum class FragmentRows { kQueries, kKeys };
__host__ __device__ constexpr int BiasPitch(FragmentRows rows, int keys, int bytes) {
  return keys + (rows == FragmentRows::kQueries ? 8 : 16 / bytes);
}

// Tiles of bias, rows are queries, in the type that it has in memory.
template <typename T, int kQueries, int kKeys, FragmentRows kFragment, int kThreads>
class BiasLoader {
 public:
  __device__ __forceinline__ BiasLoader(const AttentionParams& p, std::int64_t group, int head,
                                        int query, int key, int thread)
      : at_(Position(
            p, group * p.bias.group + head * p.bias.head + query * p.bias.query + key * p.bias.key,
            thread)) {}

  // Moves by `queries` and `keys`.
  __device__ __forceinline__ void Advance(const AttentionBias& bias, int queries, int keys) {
    at_.source +=
        (queries * bias.query + keys * bias.key) * (bias.kind == TermKind::kFloat32 ? 4 : kBytes);
  }

  __device__ __forceinline__ void Load(void* tile, const AttentionBias& bias, int queries, int keys,
                                       int thread) const {
    if (bias.kind == TermKind::kFloat32) {
      LoadAs<4>(tile, bias, queries, keys, thread);
    } else if (bias.kind == TermKind::kStorage) {
      LoadAs<kBytes>(tile, bias, queries, keys, thread);
    }
  }

 private:
  static constexpr int kBytes = static_cast<int>(sizeof(T));
  template <int kSize>
  using Loads = VectorLoads<kSize, kQueries, kKeys, BiasPitch(kFragment, kKeys, kSize), kThreads>;

  static __device__ __forceinline__ VectorPosition Position(const AttentionParams& p,
                                                            std::int64_t offset, int thread) {
    const auto* const data = static_cast<const char*>(p.bias.data);
    if (p.bias.kind == TermKind::kFloat32)
      return Loads<4>::Position(data + offset * 4, p.bias.query, thread);
    return Loads<kBytes>::Position(data + offset * kBytes, p.bias.query, thread);
  }
  template <int kSize>
  __device__ __forceinline__ void LoadAs(void* tile, const AttentionBias& bias, int queries,
                                         int keys, int thread) const {
    if (bias.aligned) {
      Loads<kSize>::Run(at_, SharedAddress(tile), bias.query, queries, keys);
    } else {
      CopyElements<kSize>(tile, BiasPitch(kFragment, kKeys, kSize), kQueries, kKeys,
                          at_.Tile(bias.query, kSize), bias.query, bias.key, queries, keys, thread,
                          kThreads);
    }
  }

  VectorPosition at_;
};

__host__ __device__ inline int BiasBytes(const AttentionParams& p, int storage_bytes) {
  return p.bias.kind == TermKind::kNone ? 0 : p.bias.kind == TermKind::kFloat32 ? 4 : storage_bytes;
}

// Shared memory of a tile of bias.
__host__ __device__ inline int BiasTileBytes(const AttentionParams& p, int storage_bytes,
                                             int queries, int keys, FragmentRows fragment) {
  const int bytes = BiasBytes(p, storage_bytes);
  return bytes == 0 ? 0 : queries * BiasPitch(fragment, keys, bytes) * bytes;
}

// x = scale * s + bias for a fragment whose rows are queries; (row, column) is where the warp's
// part of the bias tile begins.
template <typename T, int kMTiles, int kNTiles, int kKeys>
__device__ __forceinline__ void ApplyBias(float (&s)[kMTiles][kNTiles][4], const void* tile,
                                          int row, int column, TermKind kind, float scale) {
  const int lane = LaneId();
  auto apply = [&]<typename Element>(const Element* base) {
    constexpr int kPitch = BiasPitch(FragmentRows::kQueries, kKeys, sizeof(Element));
    const Element* source = base + (row + lane / 4) * kPitch + column + (lane % 4) * 2;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const float2 top = ReadPair(source + m * 16 * kPitch + n * 8);
        const float2 bottom = ReadPair(source + (m * 16 + 8) * kPitch + n * 8);
        s[m][n][0] = fmaf(s[m][n][0], scale, top.x);
        s[m][n][1] = fmaf(s[m][n][1], scale, top.y);
        s[m][n][2] = fmaf(s[m][n][2], scale, bottom.x);
        s[m][n][3] = fmaf(s[m][n][3], scale, bottom.y);
      }
    }
  };
  if (kind == TermKind::kFloat32) {
    apply(static_cast<const float*>(tile));
  } else if (kind == TermKind::kStorage) {
    apply(static_cast<const T*>(tile));
  } else {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] *= scale;
      }
    }
  }
}

// 2^(x log2(e) - m log2(e)). float32 subtracts first: the rounding of a large product would show.
template <typename T>
__device__ __forceinline__ float ExpDifference(float x, float m) {
  if constexpr (sizeof(T) == 4) {
    return Exp2((x - m) * kLog2E);
  } else {
    return Exp2(fmaf(x, kLog2E, -m * kLog2E));
  }
}

// Stores accumulators times a factor for each of a lane's rows (m * 16 + lane / 4 and that + 8).
template <typename T, int kMTiles, int kNTiles>
__device__ __forceinline__ void StoreRows(T* to, std::int64_t stride, bool aligned, int rows,
                                          int columns, const float (&c)[kMTiles][kNTiles][4],
                                          const float (&factor)[kMTiles][2]) {
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m * 16 + half * 8 + lane / 4;
      if (row >= rows) continue;
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const int column = n * 8 + (lane % 4) * 2;
        if (column >= columns) continue;
        StorePair(to + row * stride + column, c[m][n][half * 2] * factor[m][half],
                  c[m][n][half * 2 + 1] * factor[m][half], aligned);
      }
    }
  }
}

}  // namespace megafold::cuda
