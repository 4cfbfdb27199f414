// Forward of EvoAttention on Hopper: how a block is cut and laid out in shared memory, its list of
// work items, and the thread that copies for the warpgroups that compute
// (evo_attention_forward.cuh).
#pragma once

#include "backends/cuda/sm90/evo_attention_tile.cuh"

namespace megafold::cuda {

// Rows of an item and computing warpgroups: what the registers hold.
struct HopperForwardTiling {
  int rows, groups;

  __host__ __device__ constexpr int Queries() const { return groups * kHopperTile; }
  constexpr int Threads() const { return (groups + 1) * 128; }
  // setmaxnreg: 64K registers among the warpgroups.
  constexpr int ComputeRegisters() const { return groups == 2 ? 240 : 160; }
  constexpr int CopyRegisters() const { return groups == 2 ? 24 : 32; }
};

template <int kRows, int kGroups>
struct HopperForwardTilingType {
  static constexpr HopperForwardTiling kValue{kRows, kGroups};
};

// Shared memory, in bytes: rings of Q, of bias, and of K, V and mask columns; mask columns of a
// tile without a mask, and the zeros that are every tile's last eight; then the rings' barriers, a
// full and an empty one for each stage.
template <int kDim, typename Tiling, bool kHasBias>
struct ForwardLayout {
  static constexpr int kRows = Tiling::kValue.rows, kGroups = Tiling::kValue.groups;
  using Tile = VectorTile<kDim>;

  static constexpr int kQStages = 2;
  static constexpr int kBiasStages = kHasBias ? 2 : 0;

  static constexpr int kQBytes = kRows * kGroups * Tile::kBytes;
  static constexpr int kBiasBytes = kGroups * kBiasTileBytes;
  static constexpr int kK = 0, kV = Tile::kBytes;  // in a stage
  static constexpr int kStageBytes = 2 * Tile::kBytes;

  static constexpr int kQ = 0;
  static constexpr int kBias = kQ + kQStages * kQBytes;
  static constexpr int kStage = kBias + kBiasStages * kBiasBytes;
  static constexpr int kMost = 232448 - 1024 - 256 - 2 * kMaskColumnsBytes;
  static constexpr int kFitting = (kMost - kStage) / (kStageBytes + kMaskColumnsBytes);
  static constexpr int kStages = kFitting < 8 ? kFitting : 8;
  static_assert(kStages >= 3);
  static constexpr int kMask = kStage + kStages * kStageBytes;
  static constexpr int kNoMask = kMask + kStages * kMaskColumnsBytes;
  static constexpr int kZeros = kNoMask + kMaskColumnsBytes;
  static constexpr int kQBarriers = kZeros + kMaskColumnsBytes;
  static constexpr int kBiasBarriers = kQBarriers + kQStages * 16;
  static constexpr int kStageBarriers = kBiasBarriers + kBiasStages * 16;
  static constexpr int kBytes = kStageBarriers + kStages * 16 + 1024;
};

__device__ __forceinline__ std::uint32_t FullBarrier(std::uint32_t ring, int stage) {
  return ring + stage * 16;
}
__device__ __forceinline__ std::uint32_t EmptyBarrier(std::uint32_t ring, int stage) {
  return ring + stage * 16 + 8;
}

__host__ __device__ inline int ForwardItems(const HopperAttentionParams& p,
                                            HopperForwardTiling tiling) {
  const int tiles = (p.queries + tiling.Queries() - 1) / tiling.Queries();
  const int row_blocks = (static_cast<int>(p.rows) + tiling.rows - 1) / tiling.rows;
  return tiles * row_blocks * p.heads * static_cast<int>(p.groups);
}

struct ForwardItem {
  int query, head;
  int row, group;  // the first row

  // Queries vary fastest: blocks that run together read the same K and V.
  __device__ __forceinline__ ForwardItem(const HopperAttentionParams& p, HopperForwardTiling tiling,
                                         int index) {
    const int tiles = (p.queries + tiling.Queries() - 1) / tiling.Queries();
    const int row_blocks = (static_cast<int>(p.rows) + tiling.rows - 1) / tiling.rows;
    query = index % tiles * tiling.Queries();
    index /= tiles;
    row = index % row_blocks * tiling.rows;
    index /= row_blocks;
    head = index % p.heads;
    group = index / p.heads;
  }
};

template <int kDim, typename Tiling, bool kHasBias>
__device__ __forceinline__ void ForwardCopies(const HopperAttentionParams& p,
                                              std::uint32_t shared) {
  using Layout = ForwardLayout<kDim, Tiling, kHasBias>;
  constexpr int kRows = Layout::kRows, kGroups = Layout::kGroups;
  constexpr int kTileFloats = kHopperTile * kHopperTile;
  RingPosition<Layout::kQStages> q_at;
  RingPosition<kHasBias ? Layout::kBiasStages : 1> bias_at;
  RingPosition<Layout::kStages> at;
  const bool masked = p.mask_columns.tiles != nullptr;
  const int stage_bytes = Layout::kStageBytes + (masked ? kMaskColumnsBytes : 0);
  const int items = ForwardItems(p, Tiling::kValue);
  bool packed = false;  // what is packed is there; Q, K and V are copied before
  const auto wait_for_packing = [&] {
    if (!packed) WaitForPrevious();
    packed = true;
  };
  // The barrier of a stage that is free, told how much will come.
  const auto open = [&](std::uint32_t ring, auto& position, int bytes) {
    BarrierWait(EmptyBarrier(ring, position.stage), position.EmptyParity());
    const std::uint32_t full = FullBarrier(ring, position.stage);
    BarrierExpect(full, bytes);
    position.Advance();
    return full;
  };
#pragma unroll 1
  for (int index = static_cast<int>(blockIdx.x); index < items;
       index += static_cast<int>(gridDim.x)) {
    const ForwardItem item(p, Tiling::kValue, index);
    GroupRow rows[kRows];
    const char* mask[kRows];
    std::uint32_t to = shared + Layout::kQ + q_at.stage * Layout::kQBytes;
    const std::uint32_t q_full = open(shared + Layout::kQBarriers, q_at, Layout::kQBytes);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // Past the last row the last one is computed again, and not stored.
      rows[r] = GroupRow(p, item.group, min(item.row + r, static_cast<int>(p.rows) - 1));
      mask[r] = MaskColumnsRow(p, rows[r]);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        Layout::Tile::Copy(to, p.q_map, item.query + group * kHopperTile, item.head, rows[r],
                           q_full);
        to += Layout::Tile::kBytes;
      }
    }
    const int first_tile = item.query / kHopperTile;
    const int bias_tiles = min(kGroups, p.query_tiles - first_tile);
    const float* bias =
        p.bias_by_queries +
        ((static_cast<std::int64_t>(item.group) * p.heads + item.head) * p.query_tiles +
         first_tile) *
            p.key_tiles * kTileFloats;
#pragma unroll 1
    for (int tile = 0; tile < p.key_tiles; ++tile) {
      const int key = tile * kHopperTile;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        to = shared + Layout::kStage + at.stage * Layout::kStageBytes;
        const std::uint32_t mask_to = shared + Layout::kMask + at.stage * kMaskColumnsBytes;
        std::uint32_t full = open(shared + Layout::kStageBarriers, at, stage_bytes);
        Layout::Tile::Copy(to + Layout::kK, p.k_map, key, item.head, rows[r], full);
        Layout::Tile::Copy(to + Layout::kV, p.v_map, key, item.head, rows[r], full);
        if (masked) {
          wait_for_packing();
          CopyBulk(mask_to, mask[r] + tile * kMaskColumnsBytes, kMaskColumnsBytes, full);
        }
        if (!kHasBias || r > 0) continue;
        // After the keys of the first row, whose product needs no bias.
        wait_for_packing();
        to = shared + Layout::kBias + bias_at.stage * Layout::kBiasBytes;
        full = open(shared + Layout::kBiasBarriers, bias_at, bias_tiles * kBiasTileBytes);
        for (int group = 0; group < bias_tiles; ++group) {
          CopyBulk(to + group * kBiasTileBytes,
                   bias + (static_cast<std::int64_t>(group) * p.key_tiles + tile) * kTileFloats,
                   kBiasTileBytes, full);
        }
      }
    }
  }
}

}  // namespace megafold::cuda
