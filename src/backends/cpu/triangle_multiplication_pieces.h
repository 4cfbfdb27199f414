// What forward and backward of TriangleMultiplication share: tiles of pairs, channel planes and
// grouped weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "backends/cpu/gemm.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"
#include "megafold/core/tensor_view.h"
#include "megafold/ops/triangle_multiplication.h"

namespace megafold::cpu::triangle {

// Hidden channels whose planes exist at a time.
inline constexpr std::int64_t kGroup = 32;

struct Dims {
  std::int64_t batch, length, channels, hidden;

  std::int64_t groups() const { return (hidden + kGroup - 1) / kGroup; }
  std::int64_t group_begin(std::int64_t group) const { return group * kGroup; }
  std::int64_t group_size(std::int64_t group) const {
    return std::min(kGroup, hidden - group_begin(group));
  }
  // Columns that one of the four projections of a group takes in a block.
  std::int64_t group_width() const { return std::min(kGroup, PadColumns(hidden)); }
};

template <typename Args>
Dims DimsOf(const Args& args) {
  return {args.x.size(0), args.x.size(1), args.x.size(3), args.params.wap.size(0)};
}

// The pairs are taken in tiles of kTileSlow by kTileFast, rows of a block with the fast index
// running. kTileFast floats are a cache line, so that writing a tile to channel planes fills whole
// lines.
inline constexpr std::int64_t kTileSlow = 12;
inline constexpr std::int64_t kTileFast = kColumnPadding;
inline constexpr std::int64_t kTileRows = kTileSlow * kTileFast;

struct Tile {
  std::int64_t slow, fast;              // first pair
  std::int64_t slow_count, fast_count;  // pairs that exist
  std::int64_t rows() const { return slow_count * kTileFast; }
};

class Tiling {
 public:
  explicit Tiling(std::int64_t length) : length_(length) {}
  std::int64_t count() const { return Steps(kTileSlow) * Steps(kTileFast); }
  Tile operator[](std::int64_t index) const {
    const std::int64_t slow = index / Steps(kTileFast) * kTileSlow;
    const std::int64_t fast = index % Steps(kTileFast) * kTileFast;
    return {slow, fast, std::min(kTileSlow, length_ - slow), std::min(kTileFast, length_ - fast)};
  }

 private:
  std::int64_t Steps(std::int64_t step) const { return (length_ + step - 1) / step; }
  std::int64_t length_;
};

// The pairs of one batch of a [B, N, N, C] tensor, indexed (slow, fast).
struct Pairs {
  void* data;
  DType dtype;
  std::int64_t slow_stride, fast_stride;
};

// `transposed` makes the slow index the second one of the tensor.
Pairs PairsOf(const TensorView& tensor, std::int64_t batch, bool transposed);
// Columns of the pairs from `column` on.
Pairs ColumnsFrom(Pairs pairs, std::int64_t column);

// Loads a tile; rows of pairs that do not exist become zero.
void LoadTile(Pairs from, Tile tile, Block to);
// Stores the rows of a tile that exist.
void StoreTile(Block from, Tile tile, Pairs to);
// The mask of a tile's pairs as one factor a row: 1 without a mask, 0 for pairs that do not exist.
void LoadMask(const TensorView& mask, std::int64_t batch, bool transposed, Tile tile,
              float* factor);

// Channel-major pairs: channel c's plane is [N, stride], fast index contiguous.
struct Planes {
  float* data;
  std::int64_t stride, plane;

  float* Channel(std::int64_t channel) const { return data + channel * plane; }
};

Planes NewPlanes(Arena& arena, std::int64_t channels, std::int64_t length);
// One column of the block is one channel, from `channel` on.
void StorePlanes(Block from, Tile tile, Planes to, std::int64_t channel);
// Rows of pairs that do not exist become zero.
void LoadPlanes(Planes from, Tile tile, std::int64_t channel, Block to);

// Wag, Wap, Wbg, Wbp of one group below each other: [4 * group_width, C]. Missing channels are rows
// of zeros.
enum Projection { kGateA, kValueA, kGateB, kValueB };
void LoadGroup(const ops::TriangleMultiplicationParams& params, const Dims& dims,
               std::int64_t group, Block to);

struct LayerNormVectors {
  float *gamma, *beta;

  LayerNormVectors(std::int64_t size, Arena& arena)
      : gamma(arena.Floats(PadColumns(size))), beta(arena.Floats(PadColumns(size))) {}
  void Load(const TensorView& gamma_view, const TensorView& beta_view, std::int64_t size) const {
    LoadVector(gamma_view, size, 1, gamma);
    LoadVector(beta_view, size, 0, beta);
  }
  LayerNormParameters With(float eps) const { return {gamma, beta, eps}; }
};

}  // namespace megafold::cpu::triangle
