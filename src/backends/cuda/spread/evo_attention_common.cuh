// What the EvoAttention kernels for small grids share.
//
// A block keeps one to three tiles of 16 vectors (queries or keys) of one head and one row. Four
// warps share each tile: the other side passes in rounds, of which each warp takes a quarter. All
// loads of a round are issued before anything is computed, so that a short problem waits for memory
// once. The scores of a warp, 16 x step, are registers; they begin as the bias.
#pragma once

#include <cstdint>

#include "backends/cuda/attention/fragment.cuh"
#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/spread/evo_attention_params.h"

namespace megafold::cuda {

// Scores of a warp, 16 columns at a time: x[k][0] is a pair of accumulators.
template <int kPairs>
using SpreadScores = float[kPairs][1][2][4];

inline constexpr int kSpreadThreads = kSpreadMaxTiles * kSpreadParts * 32;  // at most

// Where a block and a warp of it work. `first` is the warp's first vector; `count` of its 16 are
// inside.
struct SpreadPlace {
  int part, tile, first, count, head;
  std::int64_t row, group;

  __device__ __forceinline__ SpreadPlace(const SpreadParams& p, std::int64_t block, int length,
                                         std::int64_t rows) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    part = warp % kSpreadParts;
    tile = warp / kSpreadParts;
    const int tiles = (length + p.tiles * 16 - 1) / (p.tiles * 16);
    first = (static_cast<int>(block % tiles) * p.tiles + tile) * 16;
    count = max(0, min(16, length - first));
    block /= tiles;
    head = static_cast<int>(block % p.heads);
    block /= p.heads;
    row = block % rows;
    group = block / rows;
  }
};

// Copies `rows` vectors to shared memory, of which `inside` exist; the rest becomes zero.
template <typename T, int kDim>
__device__ __forceinline__ void CopyVectors(T* tile, const T* source, std::int64_t stride, int rows,
                                            int inside, int dim) {
  constexpr int kVectors = kDim / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < rows * kVectors;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / kVectors;
    const int column = i % kVectors * 8;
    const bool valid = row < inside && column < dim;
    CopyAsync16(SharedAddress(tile + row * kTilePitch<T, kDim> + column),
                valid ? source + row * stride + column : source, valid ? 16 : 0);
  }
}

// Calls read(data), `data` of the type that the bias has in memory; zeroes x where there is none.
template <typename T, int kPairs, typename Read>
__device__ __forceinline__ void WithBias(SpreadScores<kPairs>& x, const SpreadParams& p,
                                         std::int64_t offset, const Read& read) {
  if (p.bias.kind == TermKind::kFloat32) {
    read(static_cast<const float*>(p.bias.data) + offset);
  } else if (p.bias.kind == TermKind::kStorage) {
    read(static_cast<const T*>(p.bias.data) + offset);
  } else {
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n / 2][0][n % 2][i] = 0.0F;
    }
  }
}

// The bias of a fragment whose rows are queries, from its query 0 and key 0 at `offset`.
template <typename T, int kPairs>
__device__ __forceinline__ void LoadBiasByQuery(SpreadScores<kPairs>& x, const SpreadParams& p,
                                                std::int64_t offset, int queries, int keys) {
  const int row = LaneId() / 4;
  const int column = LaneId() % 4 * 2;
  WithBias<T>(x, p, offset + row * p.bias.query + column * p.bias.key, [&](const auto* top) {
    const auto* bottom = top + 8 * p.bias.query;
    const bool inside[2] = {row < queries, row + 8 < queries};
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n) {
      const int left = keys - n * 8 - column;  // keys from this one on
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto* from = (half == 0 ? top : bottom) + n * 8 * p.bias.key;
        float2 pair = make_float2(0.0F, 0.0F);
        if (p.bias_pairs) {
          if (inside[half] && left > 0) pair = ReadPair(from);
        } else {
          if (inside[half] && left > 0) pair.x = static_cast<float>(from[0]);
          if (inside[half] && left > 1) pair.y = static_cast<float>(from[p.bias.key]);
        }
        x[n / 2][0][n % 2][half * 2] = pair.x;
        x[n / 2][0][n % 2][half * 2 + 1] = pair.y;
      }
    }
  });
}

// The same for a fragment whose rows are keys.
template <typename T, int kPairs>
__device__ __forceinline__ void LoadBiasByKey(SpreadScores<kPairs>& x, const SpreadParams& p,
                                              std::int64_t offset, int queries, int keys) {
  const int row = LaneId() / 4;
  const int column = LaneId() % 4 * 2;
  WithBias<T>(x, p, offset + row * p.bias.key + column * p.bias.query, [&](const auto* from) {
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool inside = n * 8 + column + i % 2 < queries && row + i / 2 * 8 < keys;
        x[n / 2][0][n % 2][i] =
            inside ? static_cast<float>(from[i % 2 * p.bias.query + i / 2 * 8 * p.bias.key]) : 0.0F;
      }
      from += 8 * p.bias.query;
    }
  });
}

__device__ __forceinline__ std::int64_t BiasOffset(const SpreadParams& p, const SpreadPlace& place,
                                                   int query, int key) {
  return place.group * p.bias.group + place.head * p.bias.head + query * p.bias.query +
         key * p.bias.key;
}

// Shared memory of a round of keys.
template <typename T, int kDim>
struct KeyRound {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  T *k, *v;
  float* terms;  // what the mask adds; -inf past the last key

  __device__ __forceinline__ KeyRound(char* shared, int step)
      : k(reinterpret_cast<T*>(shared)),
        v(k + kSpreadParts * step * kPitch),
        terms(reinterpret_cast<float*>(v + kSpreadParts * step * kPitch)) {}
  static int Bytes(int step) {
    return kSpreadParts * step * (2 * kPitch * static_cast<int>(sizeof(T)) + 4);
  }

  // Loads a round and the bias of the warp's part of it; ends with all of it there.
  template <int kPairs>
  __device__ __forceinline__ void Load(SpreadScores<kPairs>& x, const SpreadParams& p,
                                       const RowIndex& at, const SpreadPlace& place, int round) {
    const int step = p.key_side.step;
    const int all = kSpreadParts * step;
    const int start = round * all;
    CopyVectors<T, kDim>(k, RowBase<const T>(p.k, at, place.head) + start * p.k.token, p.k.token,
                         all, p.keys - start, p.dim);
    CopyVectors<T, kDim>(v, RowBase<const T>(p.v, at, place.head) + start * p.v.token, p.v.token,
                         all, p.keys - start, p.dim);
    CopyAsyncCommit();
    const int key = start + place.part * step;
    LoadBiasByQuery<T>(x, p, BiasOffset(p, place, place.first, key), place.count,
                       min(step, p.keys - key));
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
      terms[i] = MaskTerm<T>(p, MaskBase(p, at), start + i);
    }
    CopyAsyncWait<0>();
    __syncthreads();
  }
};

// x += scale <a, row> for 16 vectors in shared memory.
template <typename T, int kDim>
__device__ __forceinline__ void AddScores(float (&x)[1][2][4],
                                          const typename Mma<T>::A (&a)[1][kDim / 16],
                                          const T* rows, float scale) {
  float s[1][2][4] = {};
  MultiplyByRows<T, 1, kDim / 16, 2, kTilePitch<T, kDim>>(s, a, rows);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[0][n][i] = fmaf(s[0][n][i], scale, x[0][n][i]);
  }
}

// e^(x - m). Subtracting first keeps scores near the largest float apart from infinity.
__device__ __forceinline__ float SpreadExp(float x, float m) { return Exp2((x - m) * kLog2E); }

// Sums of a tile over its parts, through shared memory, in the order of the parts.
template <int kDim>
struct PartSums {
  static constexpr int kPitch = kDim + 8;  // without bank conflicts
  float* region;                           // [tiles][parts][16][kPitch]

  __device__ __forceinline__ explicit PartSums(char* shared)
      : region(reinterpret_cast<float*>(shared)) {}
  __host__ __device__ static constexpr int Bytes(int tiles) {
    return tiles * kSpreadParts * 16 * kPitch * 4;
  }

  __device__ __forceinline__ void Put(const SpreadPlace& place, const float (&c)[1][kDim / 8][4]) {
    float* to = region + ((place.tile * kSpreadParts + place.part) * 16 + LaneId() / 4) * kPitch +
                LaneId() % 4 * 2;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(to + n * 8) = make_float2(c[0][n][0], c[0][n][1]);
      *reinterpret_cast<float2*>(to + 8 * kPitch + n * 8) = make_float2(c[0][n][2], c[0][n][3]);
    }
  }
  // Stores the tile's vectors at `to`; factors(row) gives an array of what each part is multiplied
  // by.
  template <typename T, typename Factors>
  __device__ __forceinline__ void Store(const SpreadPlace& place, T* to, std::int64_t stride,
                                        int dim, const Factors& factors) const {
    const float* from = region + place.tile * kSpreadParts * 16 * kPitch;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const int pair = place.part * 32 + LaneId() + i * kSpreadParts * 32;
      const int row = pair / (kDim / 2);
      const int column = pair % (kDim / 2) * 2;
      if (row >= place.count || column >= dim) continue;
      const float4 factor = factors(row);
      const float each[kSpreadParts] = {factor.x, factor.y, factor.z, factor.w};
      float2 sum = make_float2(0.0F, 0.0F);
#pragma unroll
      for (int part = 0; part < kSpreadParts; ++part) {
        const float2 value =
            *reinterpret_cast<const float2*>(from + (part * 16 + row) * kPitch + column);
        sum.x = fmaf(value.x, each[part], sum.x);
        sum.y = fmaf(value.y, each[part], sum.y);
      }
      StorePair(to + row * stride + column, sum.x, sum.y, true);
    }
  }
};

}  // namespace megafold::cuda
