// Forward of EvoAttention on Hopper: the threads that copy for the warpgroups that compute
// (evo_attention_forward.cuh).
#pragma once

#include "backends/cuda/sm90/evo_attention_forward_layout.cuh"

namespace megafold::cuda {

// What one lane of each of three warps copies: a single one would take longer to issue the copies
// of a tile than the tile's steps take.
enum class ForwardOperand { kQueries, kBias, kKeys };

template <int kDim, typename Tiling, bool kHasBias, ForwardOperand kOperand>
class ForwardCopier {
 public:
  __device__ __forceinline__ ForwardCopier(const HopperAttentionParams& p, std::uint32_t shared)
      : p_(p), shared_(shared) {}

  // For all items, then, where some can have been marked, for those that were.
  template <bool kMarks>
  __device__ __forceinline__ void Run() {
    if (kOperand == ForwardOperand::kBias) WaitForPrevious();
    const int items = ForwardItems(p_, Tiling::kValue);
    const ForwardMarks<Layout> marks(shared_);
#pragma unroll 1
    for (int pass = 0; pass < (kMarks ? 2 : 1); ++pass) {
      if (pass > 0 && !marks.Any()) return;
      int slot = 0;
#pragma unroll 1
      for (int index = static_cast<int>(blockIdx.x); index < items;
           index += static_cast<int>(gridDim.x)) {
        if (pass == 0 || marks.Has(slot)) {
          const ForwardItem item(p_, Tiling::kValue, index);
          if constexpr (kOperand == ForwardOperand::kQueries) {
            CopyQueries(item, slot);
            LetFirstPass();
          }
          if constexpr (kOperand == ForwardOperand::kBias) CopyBias(item);
          if constexpr (kOperand == ForwardOperand::kKeys) CopyKeys(item);
        }
        ++slot;
      }
    }
  }

 private:
  using Layout = ForwardLayout<kDim, Tiling, kHasBias>;
  static constexpr int kRows = Layout::kRows, kGroups = Layout::kGroups;
  static constexpr int kStages = kOperand == ForwardOperand::kQueries ? Layout::kQStages
                                 : kOperand == ForwardOperand::kBias  ? Layout::kBiasStages
                                                                      : Layout::kStages;

  // The full barrier of the ring's next stage, once that is free.
  __device__ __forceinline__ std::uint32_t Open(std::uint32_t ring) {
    ring += shared_;
    BarrierWait(EmptyBarrier(ring, at_.stage), at_.EmptyParity());
    const std::uint32_t full = FullBarrier(ring, at_.stage);
    at_.Advance();
    return full;
  }
  // Past the last row the last one is computed again, and not stored.
  __device__ __forceinline__ GroupRow Row(const ForwardItem& item, int r) const {
    return GroupRow(p_, item.group, min(item.row + r, static_cast<int>(p_.rows) - 1));
  }

  __device__ __forceinline__ void CopyQueries(const ForwardItem& item, int slot) {
    const std::uint32_t place = shared_ + Layout::kPlaces + at_.stage * Layout::kPlaceBytes;
    std::uint32_t to = shared_ + Layout::kQ + at_.stage * Layout::kQBytes;
    const std::uint32_t full = Open(Layout::kQBarriers);
    GroupRow rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rows[r] = Row(item, r);
      ForwardPlace::StoreRow(place, r, rows[r]);
    }
    ForwardPlace{item.query, item.head, slot, static_cast<int>(p_.rows) - item.row}.Store(place);
    BarrierExpect(full, Layout::kQBytes);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        Layout::Tile::Copy(to, p_.q_map, item.query + group * kHopperTile, item.head, rows[r],
                           full);
        to += Layout::Tile::kBytes;
      }
    }
  }

  __device__ __forceinline__ void CopyBias(const ForwardItem& item) {
    constexpr int kTileFloats = kHopperTile * kHopperTile;
    const int first_tile = item.query / kHopperTile;
    const int tiles = min(kGroups, p_.query_tiles - first_tile);
    const float* from =
        p_.bias_by_queries +
        ((static_cast<std::int64_t>(item.group) * p_.heads + item.head) * p_.query_tiles +
         first_tile) *
            p_.key_tiles * kTileFloats;
#pragma unroll 1
    for (int tile = 0; tile < p_.key_tiles; ++tile) {
      std::uint32_t to = shared_ + Layout::kBias + at_.stage * Layout::kBiasBytes;
      const std::uint32_t full = Open(Layout::kBiasBarriers);
      BarrierExpect(full, tiles * kBiasTileBytes);
      const float* source = from;
#pragma unroll 1
      for (int group = 0; group < tiles; ++group) {
        CopyBulk(to, source, kBiasTileBytes, full);
        to += kBiasTileBytes;
        source += p_.key_tiles * kTileFloats;
      }
      from += kTileFloats;
      LetFirstPass();
    }
  }

  // And the mask, which has to be packed by then.
  __device__ __forceinline__ void CopyKeys(const ForwardItem& item) {
    const bool masked = p_.mask_columns.tiles != nullptr;
    GroupRow rows[kRows];
    const char* mask[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rows[r] = Row(item, r);
      mask[r] = MaskColumnsRow(p_, rows[r]);
    }
#pragma unroll 1
    for (int tile = 0; tile < p_.key_tiles; ++tile) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::uint32_t to = shared_ + Layout::kStage + at_.stage * Layout::kStageBytes;
        const std::uint32_t mask_to = shared_ + Layout::kMask + at_.stage * kMaskColumnsBytes;
        const std::uint32_t full = Open(Layout::kStageBarriers);
        BarrierExpect(full, Layout::kStageBytes + (masked ? kMaskColumnsBytes : 0));
        const int key = tile * kHopperTile;
        Layout::Tile::Copy(to + Layout::kK, p_.k_map, key, item.head, rows[r], full);
        Layout::Tile::Copy(to + Layout::kV, p_.v_map, key, item.head, rows[r], full);
        if (!masked) continue;
        if (!packed_) WaitForPrevious();
        packed_ = true;
        CopyBulk(mask_to, mask[r] + tile * kMaskColumnsBytes, kMaskColumnsBytes, full);
      }
      LetFirstPass();
    }
  }

  // What a block needs first comes before what fills its rings: all blocks ask for that at once.
  __device__ __forceinline__ void LetFirstPass() {
    if (!begun_) BarrierWait(FullBarrier(shared_ + Layout::kQBarriers, 0), 0);
    begun_ = true;
  }

  const HopperAttentionParams& p_;
  const std::uint32_t shared_;
  RingPosition<(kStages > 0 ? kStages : 1)> at_;
  bool packed_ = false;  // what is packed is there: Q, K and V are copied before
  bool begun_ = false;   // the block's first queries are there
};

// What the copying warpgroup does.
template <int kDim, typename Tiling, bool kHasBias, bool kMarks>
__device__ __forceinline__ void ForwardCopies(const HopperAttentionParams& p,
                                              std::uint32_t shared) {
  const auto copy = [&]<ForwardOperand kOperand>(std::integral_constant<ForwardOperand, kOperand>) {
    ForwardCopier<kDim, Tiling, kHasBias, kOperand>(p, shared).template Run<kMarks>();
  };
  switch (threadIdx.x) {
    case 0:
      return copy(std::integral_constant<ForwardOperand, ForwardOperand::kKeys>{});
    case 32:
      return copy(std::integral_constant<ForwardOperand, ForwardOperand::kQueries>{});
    case 64:
      if constexpr (kHasBias) {
        copy(std::integral_constant<ForwardOperand, ForwardOperand::kBias>{});
      }
  }
}

}  // namespace megafold::cuda
