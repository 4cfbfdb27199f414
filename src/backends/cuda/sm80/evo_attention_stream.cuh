// Where a block of a portable EvoAttention kernel works, and the tiles that stream past it: two operands
// and a tile of bias a stage, two stages in shared memory.
#pragma once

#include "backends/cuda/sm80/evo_attention_common.cuh"
#include "backends/cuda/sm80/evo_attention_tiling.h"

namespace megafold::cuda {

// Offsets of a stage's parts in shared memory, in bytes. The bias tile comes last: its size depends on
// its type.
template <typename T, int kDim, AttentionTiling kTiling>
struct StreamLayout {
  static constexpr int kTile = kTiling.n_block * kTilePitch<T, kDim> * static_cast<int>(sizeof(T));
  static constexpr int kFirst = 0;                                // K or Q of each row
  static constexpr int kSecond = kTiling.row_warps * kTile;       // V or dO of each row
  static constexpr int kTerms = 2 * kSecond;                      // one or two floats a vector
  static constexpr int kBias = kTerms + kTiling.row_warps * kTiling.n_block * 8;
  static constexpr int kBiasPitchByQuery = kTiling.n_block + 8;   // rows of n_block keys
  static constexpr int kBiasPitchByKey = kTiling.MBlock() + 4;    // rows of MBlock() keys
};

// Where a block works: the tile of the side it keeps, its rows and its head.
struct BlockPlace {
  int tile, head;
  std::int64_t row, group;
  __device__ BlockPlace(const AttentionParams& p, int length, int m_block, int row_warps) {
    const std::int64_t tiles = (length + m_block - 1) / m_block;
    const std::int64_t row_blocks = (p.rows + row_warps - 1) / row_warps;
    std::int64_t block = blockIdx.x;
    tile = static_cast<int>(block % tiles) * m_block;
    block /= tiles;
    row = block % row_blocks * row_warps;
    block /= row_blocks;
    head = static_cast<int>(block % p.heads);
    group = block / p.heads;
  }
};

inline std::int64_t BlockCount(const AttentionParams& p, int length, const AttentionTiling& tiling) {
  const std::int64_t tiles = (length + tiling.MBlock() - 1) / tiling.MBlock();
  const std::int64_t row_blocks = (p.rows + tiling.row_warps - 1) / tiling.row_warps;
  return tiles * row_blocks * p.heads * p.groups;
}

// The tiles of K and V, or of Q and dO, of every row of the block.
template <typename T, int kDim, AttentionTiling kTiling>
__device__ __forceinline__ void LoadStream(char* stage, const AttentionParams& p,
                                           const AttentionOperand& first,
                                           const AttentionOperand& second, const BlockPlace& place,
                                           int start, int length) {
  using Layout = StreamLayout<T, kDim, kTiling>;
#pragma unroll
  for (int r = 0; r < kTiling.row_warps; ++r) {
    const bool inside = place.row + r < p.rows;
    const RowIndex at(p, place.group, inside ? place.row + r : place.row);
    const int count = inside ? length - start : 0;
    LoadTile<T, kTiling.n_block, kDim, kTiling.Threads()>(
        reinterpret_cast<T*>(stage + Layout::kFirst + r * Layout::kTile),
        RowBase<const T>(first, at, place.head) + start * first.token, first.token, count, p.dim,
        first.aligned);
    LoadTile<T, kTiling.n_block, kDim, kTiling.Threads()>(
        reinterpret_cast<T*>(stage + Layout::kSecond + r * Layout::kTile),
        RowBase<const T>(second, at, place.head) + start * second.token, second.token, count, p.dim,
        second.aligned);
  }
}

// The mask terms of a tile of keys, a value or more a thread, held in registers until the tile's stage
// in shared memory is free.
template <typename T, AttentionTiling kTiling>
struct MaskPrefetch {
  static constexpr int kTotal = kTiling.row_warps * kTiling.n_block;
  static constexpr int kEach = (kTotal + kTiling.Threads() - 1) / kTiling.Threads();
  float value[kEach];

  __device__ __forceinline__ void Load(const AttentionParams& p, const BlockPlace& place, int start) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kTiling.Threads();
      const std::int64_t row = place.row + index / kTiling.n_block;
      value[i] = 0.0F;
      if (index < kTotal && row < p.rows) {
        value[i] = MaskTerm<T>(p, RowIndex(p, place.group, row), start + index % kTiling.n_block);
      }
    }
  }
  __device__ __forceinline__ void Store(float* terms) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kTiling.Threads();
      if (index < kTotal) terms[index] = value[i];
    }
  }
};

}  // namespace megafold::cuda
