// What packs a term of the scores by threads of a block: pieces of a mask, and tiles of a bias of
// which every row begins on 16 bytes (evo_attention_pack.cu).
#pragma once

#include <cuda_bf16.h>

#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/ptx.cuh"
#include "backends/cuda/sm90/evo_attention_params.h"

namespace megafold::cuda {

inline constexpr int kPackThreads = 256;

// The bound leaves room for sums and for the products with scale that follow.
__device__ __forceinline__ float InUnits(float term, float unit) {
  constexpr float kBound = 1e30F;
  return isinf(term) ? term * unit : fmaxf(fminf(term * unit, kBound), -kBound);
}
__device__ __forceinline__ float4 InUnits(float a, float b, float c, float d, float unit) {
  return make_float4(InUnits(a, unit), InUnits(b, unit), InUnits(c, unit), InUnits(d, unit));
}

// A number as a sum of three bfloat16, exact to the last bits of float32.
struct Parts {
  float value[3] = {};
  __device__ __forceinline__ explicit Parts(float rest) {
#pragma unroll
    for (float& part : value) {
      part = __bfloat162float(__float2bfloat16_rn(rest));
      if (isinf(part)) break;
      rest -= part;
    }
  }
};

// Columns of a product. A warp packs a piece of a row, so that a row is looked for once.
struct MaskColumns {
  static constexpr int kEach = 4;  // keys of a lane
  static constexpr int kPiece = 32 * kEach;
  int rows = 0;    // of the mask in a batch
  int length = 0;  // keys of a row, up to whole tiles
  int row_pieces = 0, pieces = 0;
  uint4* columns = nullptr;

  std::int64_t Blocks() const {
    return (std::int64_t{pieces} * 32 + kPackThreads - 1) / kPackThreads;
  }

  template <typename T>
  __device__ __forceinline__ void PackBlock(const AttentionProblem& p, int block) const {
    const int piece = block * (kPackThreads / 32) + static_cast<int>(threadIdx.x) / 32;
    if (piece >= pieces) return;
    const int row = piece / row_pieces;
    const std::int64_t base = MaskBase(p, RowIndex(row / rows, row % rows));
    const int first = piece % row_pieces * kPiece + static_cast<int>(threadIdx.x) % 32;
    std::uint32_t bits[kEach] = {};  // all loads are on their way before the first is needed
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (first + i * 32 < p.keys) bits[i] = MaskBits<T>(p, base, first + i * 32);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int key = first + i * 32;
      const float term = key < p.keys ? MaskValue<T>(p.mask.kind, bits[i]) : -kInfinity;
      if (key < length) columns[static_cast<std::int64_t>(row) * length + key] = Column(p, term);
    }
  }
  static __device__ __forceinline__ uint4 Column(const AttentionProblem& p, float term) {
    const Parts parts(term / p.scale);
    const auto pair = [](float a, float b) { return Pack(a, b, __nv_bfloat16{}); };
    return make_uint4(pair(1.0F, 1.0F), pair(1.0F, parts.value[0]),
                      pair(parts.value[1], parts.value[2]), 0);
  }
};

// A bias whose keys lie side by side, packed by queries: a block packs a tile.
struct AlignedBias {
  int query_tiles, key_tiles;
  float unit;
  float4* packed;

  template <typename T>
  __device__ __forceinline__ void PackTile(const AttentionProblem& p, int index) const {
    __shared__ __align__(16) float tile[kHopperTile * kPitch];
    const int matrix = index / key_tiles / query_tiles;
    const T* const bias = static_cast<const T*>(p.bias.data) + matrix / p.heads * p.bias.group +
                          matrix % p.heads * p.bias.head;
    const int query = index / key_tiles % query_tiles * kHopperTile;
    const int key = index % key_tiles * kHopperTile;
    if (query + kHopperTile <= p.queries && key + kHopperTile <= p.keys) {
      ReadWhole(tile, bias + query * p.bias.query + key, p.bias.query);
    } else {
      Read(tile, bias, p, query, key);
    }
    __syncthreads();
    Write(tile, packed + static_cast<std::int64_t>(index) * 8 * kPlaces);
  }

 private:
  static constexpr int kPitch = kHopperTile + 8;  // pairs of keys of four queries, in all banks
  static constexpr int kPlaces = 128;             // threads that read a packed tile

  template <typename T>
  static __device__ __forceinline__ void ReadWhole(float* tile, const T* from,
                                                   std::int64_t stride) {
    constexpr int kVector = 16 / sizeof(T);
    constexpr int kRowThreads = kHopperTile / kVector;
    constexpr int kRows = kPackThreads / kRowThreads;  // at once
    const int key = static_cast<int>(threadIdx.x) % kRowThreads * kVector;
    const int query = static_cast<int>(threadIdx.x) / kRowThreads;
    uint4 vectors[kHopperTile / kRows];
#pragma unroll
    for (int i = 0; i < kHopperTile / kRows; ++i) {
      vectors[i] = *reinterpret_cast<const uint4*>(from + (query + i * kRows) * stride + key);
    }
#pragma unroll
    for (int i = 0; i < kHopperTile / kRows; ++i) {
      const T* const values = reinterpret_cast<const T*>(&vectors[i]);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        tile[(query + i * kRows) * kPitch + key + k] = static_cast<float>(values[k]);
      }
    }
  }

  // A tile at the queries' or the keys' end.
  template <typename T>
  static __device__ __forceinline__ void Read(float* tile, const T* bias, const AttentionProblem& p,
                                              int first_query, int first_key) {
    const int column = static_cast<int>(threadIdx.x) % kHopperTile;
    const int key = first_key + column;
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x) / kHopperTile; row < kHopperTile;
         row += kPackThreads / kHopperTile) {
      const int query = first_query + row;
      float value = key < p.keys ? 0.0F : -kInfinity;
      if (key < p.keys && query < p.queries) {
        value = static_cast<float>(bias[query * p.bias.query + key]);
      }
      tile[row * kPitch + column] = value;
    }
  }

  __device__ __forceinline__ void Write(const float* tile, float4* to) const {
    const int place = static_cast<int>(threadIdx.x) % kPlaces;
    const float* const from = tile + (place / 32 * 16 + place % 32 / 4) * kPitch + place % 4 * 2;
    constexpr int kEach = kPlaces * 8 / kPackThreads;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int v = static_cast<int>(threadIdx.x) / kPlaces * kEach + i;
      const float2 top = *reinterpret_cast<const float2*>(from + 8 * v);
      const float2 bottom = *reinterpret_cast<const float2*>(from + 8 * kPitch + 8 * v);
      to[v * kPlaces + place] = InUnits(top.x, top.y, bottom.x, bottom.y, unit);
    }
  }
};

}  // namespace megafold::cuda
