// Where a block of a portable EvoAttention kernel works, and the tiles that stream past it: two
// operands and a tile of bias a stage, two stages in shared memory.
#pragma once

#include "backends/cuda/sm80/evo_attention_common.cuh"
#include "backends/cuda/sm80/evo_attention_tiling.h"

namespace megafold::cuda {

// Offsets of a stage's parts in shared memory, in bytes. The bias tile comes last: its size depends
// on its type.
template <typename T, int kDim, AttentionTiling kTiling>
struct StreamLayout {
  static constexpr int kTile = kTiling.n_block * kTilePitch<T, kDim> * static_cast<int>(sizeof(T));
  static constexpr int kFirst = 0;                           // K or Q of each row
  static constexpr int kSecond = kTiling.row_warps * kTile;  // V or dO of each row
  static constexpr int kTerms = 2 * kSecond;                 // one or two floats a vector
  static constexpr int kBias = kTerms + kTiling.row_warps * kTiling.n_block * 8;
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

inline std::int64_t BlockCount(const AttentionParams& p, int length,
                               const AttentionTiling& tiling) {
  const std::int64_t tiles = (length + tiling.MBlock() - 1) / tiling.MBlock();
  const std::int64_t row_blocks = (p.rows + tiling.row_warps - 1) / tiling.row_warps;
  return tiles * row_blocks * p.heads * p.groups;
}

// The tiles of two operands (K and V, or Q and dO) of one row, loaded by the warps that work on the
// row.
template <typename T, int kDim, AttentionTiling kTiling>
class StreamLoader {
 public:
  __device__ __forceinline__ StreamLoader(const AttentionOperand& first,
                                          const AttentionOperand& second, const RowIndex& at,
                                          int head, int row, bool inside)
      : thread_(static_cast<int>(threadIdx.x) % kThreads),
        row_(row),
        inside_(inside),
        first_(RowBase<const T>(first, at, head), first.token, thread_),
        second_(RowBase<const T>(second, at, head), second.token, thread_) {}

  // Loads the next tile, of which `count` vectors are inside.
  __device__ __forceinline__ void Next(char* stage, const AttentionOperand& first,
                                       const AttentionOperand& second, int count, int dim) {
    const int rows = inside_ ? count : 0;
    first_.Load(reinterpret_cast<T*>(stage + Layout::kFirst + row_ * Layout::kTile), first.token,
                rows, dim, first.aligned, thread_);
    second_.Load(reinterpret_cast<T*>(stage + Layout::kSecond + row_ * Layout::kTile), second.token,
                 rows, dim, second.aligned, thread_);
    first_.Advance(kTiling.n_block * first.token);
    second_.Advance(kTiling.n_block * second.token);
  }

 private:
  using Layout = StreamLayout<T, kDim, kTiling>;
  static constexpr int kThreads = kTiling.m_warps * 32;
  int thread_, row_;
  bool inside_;
  TileLoader<T, kTiling.n_block, kDim, kThreads> first_, second_;
};

// The mask terms of the tiles of keys of one row, a value or more a thread, held in registers until
// the tile's stage in shared memory is free.
template <typename T, AttentionTiling kTiling>
class MaskLoader {
 public:
  __device__ __forceinline__ MaskLoader(const AttentionParams& p, const RowIndex& at, int row)
      : key_(static_cast<int>(threadIdx.x) % kThreads), row_(row), offset_(MaskBase(p, at)) {}

  // Only bits: nothing waits for the loads before Store.
  __device__ __forceinline__ void Read(const AttentionParams& p, int start) {
    start_ = start;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int key = start + key_ + i * kThreads;
      bits_[i] = key < p.keys ? MaskBits<T>(p, offset_, key) : 0U;
    }
  }
  __device__ __forceinline__ void Store(const AttentionParams& p, float* terms) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int key = key_ + i * kThreads;
      if (key >= kTiling.n_block) break;
      terms[row_ * kTiling.n_block + key] =
          start_ + key < p.keys ? MaskValue<T>(p.mask.kind, bits_[i]) : -kInfinity;
    }
  }

 private:
  static constexpr int kThreads = kTiling.m_warps * 32;
  static constexpr int kEach = (kTiling.n_block + kThreads - 1) / kThreads;
  int key_, row_;
  int start_ = 0;
  std::int64_t offset_;
  std::uint32_t bits_[kEach];
};

}  // namespace megafold::cuda
