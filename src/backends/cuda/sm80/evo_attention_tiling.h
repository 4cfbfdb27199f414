// How a portable EvoAttention kernel is cut into tiles, and which cut a problem gets.
#pragma once

#include <cstdint>

#include "backends/cuda/sm80/evo_attention_params.h"

namespace megafold::cuda {

// A block keeps m_warps * m_tiles * 16 vectors (queries or keys) of row_warps rows of a group and
// walks over the other side in tiles of n_block, of which a warp takes n_step at a time.
struct AttentionTiling {
  int m_tiles, m_warps, row_warps, n_block, n_step, min_blocks;

  constexpr int MBlock() const { return m_warps * m_tiles * 16; }
  constexpr int Threads() const { return m_warps * row_warps * 32; }
};

// A block of dBias: m_warps * m_tiles * 16 queries times n_warps * n_tiles * 8 keys; it walks over
// rows.
struct BiasGradientTiling {
  int m_tiles, m_warps, n_tiles, n_warps, stages, min_blocks;

  constexpr int MBlock() const { return m_warps * m_tiles * 16; }
  constexpr int NBlock() const { return n_warps * n_tiles * 8; }
  constexpr int Threads() const { return m_warps * n_warps * 32; }
};

// A tiling as a type. nvcc cannot name kernels whose template arguments are values of class type.
template <int kMTiles, int kMWarps, int kRowWarps, int kNBlock, int kNStep, int kMinBlocks>
struct AttentionTilingType {
  static constexpr AttentionTiling kValue{kMTiles, kMWarps, kRowWarps, kNBlock, kNStep, kMinBlocks};
};
template <int kMTiles, int kMWarps, int kNTiles, int kNWarps, int kStages, int kMinBlocks>
struct BiasGradientTilingType {
  static constexpr BiasGradientTiling kValue{kMTiles, kMWarps, kNTiles,
                                             kNWarps, kStages, kMinBlocks};
};
template <AttentionTiling kT>
using AttentionTilingOf =
    AttentionTilingType<kT.m_tiles, kT.m_warps, kT.row_warps, kT.n_block, kT.n_step, kT.min_blocks>;
template <BiasGradientTiling kT>
using BiasGradientTilingOf = BiasGradientTilingType<kT.m_tiles, kT.m_warps, kT.n_tiles, kT.n_warps,
                                                    kT.stages, kT.min_blocks>;

// Small tiles where an element or a vector is long, so that accumulators fit in registers and two
// stages fit in the 99 KiB that every supported device has.
constexpr bool IsWide(int element_bytes, int dim) { return element_bytes == 4 || dim > 64; }

constexpr AttentionTiling ForwardTiling(AttentionShape shape, int element_bytes, int dim) {
  if (IsWide(element_bytes, dim)) {
    return {
        .m_tiles = 1, .m_warps = 4, .row_warps = 1, .n_block = 32, .n_step = 32, .min_blocks = 1};
  }
  switch (shape) {
    case AttentionShape::kByHeuristic:  // ChooseShape has chosen
      break;
    case AttentionShape::kShared:
      return dim <= 32 ? AttentionTiling{2, 4, 3, 64, 32, 1} : AttentionTiling{1, 4, 2, 64, 32, 2};
    case AttentionShape::kSingle:
      return {1, 4, 1, 64, 64, 3};
    case AttentionShape::kWindow:
      return {1, 2, 2, 64, 64, 3};
  }
  return {};
}

// dK and dV: a block keeps keys and walks over queries.
constexpr AttentionTiling KeysTiling(AttentionShape shape, int element_bytes, int dim) {
  if (IsWide(element_bytes, dim)) {
    return {
        .m_tiles = 1, .m_warps = 4, .row_warps = 1, .n_block = 32, .n_step = 16, .min_blocks = 1};
  }
  switch (shape) {
    case AttentionShape::kByHeuristic:  // ChooseShape has chosen
      break;
    case AttentionShape::kShared:
      return dim <= 32 ? AttentionTiling{2, 4, 1, 64, 32, 2} : AttentionTiling{1, 4, 1, 64, 32, 2};
    case AttentionShape::kSingle:
      return {1, 4, 1, 64, 32, 2};
    case AttentionShape::kWindow:
      return {1, 2, 2, 32, 32, 2};
  }
  return {};
}

// dQ: a block keeps queries and walks over keys.
constexpr AttentionTiling QueriesTiling(AttentionShape shape, int element_bytes, int dim) {
  if (IsWide(element_bytes, dim)) {
    return {
        .m_tiles = 1, .m_warps = 4, .row_warps = 1, .n_block = 32, .n_step = 16, .min_blocks = 1};
  }
  switch (shape) {
    case AttentionShape::kByHeuristic:  // ChooseShape has chosen
      break;
    case AttentionShape::kShared:
      return dim <= 32 ? AttentionTiling{1, 4, 2, 64, 32, 2}
                       : AttentionTiling{1, 4, 1, 64, 32, dim <= 48 ? 3 : 2};
    case AttentionShape::kSingle:
      return {1, 4, 1, 64, 32, 2};
    case AttentionShape::kWindow:
      return {1, 2, 2, 64, 32, 2};
  }
  return {};
}

constexpr BiasGradientTiling BiasTiling(AttentionShape shape, int element_bytes, int dim) {
  if (element_bytes == 4) return {1, 2, 2, 2, 1, 1};
  if (dim > 64) return {1, 4, 4, 2, 1, 1};
  return shape == AttentionShape::kWindow ? BiasGradientTiling{2, 1, 4, 4, 2, 2}
                                          : BiasGradientTiling{1, 4, 4, 2, 2, 2};
}

// What a tuned choice says, else by heuristic. `length` is that of the side that a block keeps;
// `window` says that the problem is one of few queries.
inline AttentionShape ChooseShape(const AttentionParams& params, int length, bool window) {
  if (params.shape != AttentionShape::kByHeuristic) return params.shape;
  if (window || length <= 32) return AttentionShape::kWindow;
  if (params.rows >= 4 && params.bias.kind != TermKind::kNone) return AttentionShape::kShared;
  return AttentionShape::kSingle;
}

}  // namespace megafold::cuda
