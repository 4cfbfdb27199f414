// Forward of EvoAttention on Hopper: how a block is cut and laid out in shared memory, its list of
// work items, and what its warps tell each other about them (evo_attention_forward.cuh).
#pragma once

#include <type_traits>

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

// bfloat16 has float32's range: exponentials are of the scores as they are, and an item with a sum
// that leaves what is safe of it is done again at the block's end, with shifts. float16's sums
// would leave its range too often: a look at them is part of every step.
template <typename T>
inline constexpr bool kFitsInSteps = std::is_same_v<T, __half>;

// Shared memory, in bytes: rings of Q, of bias, and of K, V and mask columns; mask columns of a
// tile without a mask, and the zeros that are every tile's last eight; then the rings' barriers, a
// full and an empty one for each stage; where the items in the ring of Q lie; the barrier that says
// that all items that are to be done again are marked, whether any are, and the marks.
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
  static constexpr int kPlaceBytes = 48;
  static constexpr int kMarksBytes = 256;
  static constexpr int kMost = 232448 - 1024 - 256 - 512 - 2 * kMaskColumnsBytes;
  static constexpr int kFitting = (kMost - kStage) / (kStageBytes + kMaskColumnsBytes);
  static constexpr int kStages = kFitting < 8 ? kFitting : 8;
  static_assert(kStages >= 3);
  static constexpr int kMask = kStage + kStages * kStageBytes;
  static constexpr int kNoMask = kMask + kStages * kMaskColumnsBytes;
  static constexpr int kZeros = kNoMask + kMaskColumnsBytes;
  static constexpr int kQBarriers = kZeros + kMaskColumnsBytes;
  static constexpr int kBiasBarriers = kQBarriers + kQStages * 16;
  static constexpr int kStageBarriers = kBiasBarriers + kBiasStages * 16;
  static constexpr int kPlaces = kStageBarriers + kStages * 16;
  static constexpr int kAllMarked = kPlaces + kQStages * kPlaceBytes;
  static constexpr int kAnyMarked = kAllMarked + 8;
  static constexpr int kMarks = kAnyMarked + 4;
  static constexpr int kBytes = kMarks + kMarksBytes + 1024;
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

  // Queries vary fastest, then heads: blocks that run together read the same K and V, and whole
  // vectors of all heads.
  __device__ __forceinline__ ForwardItem(const HopperAttentionParams& p, HopperForwardTiling tiling,
                                         int index) {
    const int tiles = (p.queries + tiling.Queries() - 1) / tiling.Queries();
    const int row_blocks = (static_cast<int>(p.rows) + tiling.rows - 1) / tiling.rows;
    query = index % tiles * tiling.Queries();
    index /= tiles;
    head = index % p.heads;
    index /= p.heads;
    row = index % row_blocks * tiling.rows;
    group = index / row_blocks;
  }
};

// Where an item lies, which the copying thread tells those that compute: its first query, its head,
// the how manieth of the block it is, and how many rows there are from its first one on.
struct ForwardPlace {
  int query, head, slot, rows;

  static __device__ __forceinline__ ForwardPlace Load(std::uint32_t address) {
    ForwardPlace place;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(place.query), "=r"(place.head), "=r"(place.slot), "=r"(place.rows)
                 : "r"(address)
                 : "memory");
    return place;
  }
  __device__ __forceinline__ void Store(std::uint32_t address) const {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(query), "r"(head),
                 "r"(slot), "r"(rows)
                 : "memory");
  }
  static __device__ __forceinline__ GroupRow LoadRow(std::uint32_t address, int r) {
    GroupRow at;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(at.batch), "=r"(at.row)
                 : "r"(address + 16 + r * 8)
                 : "memory");
    return at;
  }
  static __device__ __forceinline__ void StoreRow(std::uint32_t address, int r,
                                                  const GroupRow& at) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address + 16 + r * 8), "r"(at.batch),
                 "r"(at.row)
                 : "memory");
  }
};

// Marks of a block's items: one bit each, which items share where there are more than bits.
template <typename Layout>
class ForwardMarks {
 public:
  __device__ __forceinline__ explicit ForwardMarks(std::uint32_t shared) : shared_(shared) {}
  // By all of the block, before anything else is done with them.
  __device__ __forceinline__ void Clear() const {
    if (threadIdx.x > Layout::kMarksBytes / 4) return;
    const auto at = shared_ + Layout::kAnyMarked + static_cast<std::uint32_t>(threadIdx.x) * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(0U) : "memory");
  }
  __device__ __forceinline__ void Set(int slot) const {
    Or(Word(slot), 1U << slot % 32);
    Or(shared_ + Layout::kAnyMarked, 1);
  }
  __device__ __forceinline__ bool Has(int slot) const {
    return (Load(Word(slot)) >> slot % 32 & 1U) != 0;
  }
  // Once all have been set.
  __device__ __forceinline__ bool Any() const {
    BarrierWait(shared_ + Layout::kAllMarked, 0);
    return Load(shared_ + Layout::kAnyMarked) != 0;
  }

 private:
  __device__ __forceinline__ std::uint32_t Word(int slot) const {
    return shared_ + Layout::kMarks + slot / 32 % (Layout::kMarksBytes / 4) * 4;
  }
  static __device__ __forceinline__ void Or(std::uint32_t word, std::uint32_t bits) {
    asm volatile("red.shared.or.b32 [%0], %1;" ::"r"(word), "r"(bits) : "memory");
  }
  static __device__ __forceinline__ std::uint32_t Load(std::uint32_t at) {
    std::uint32_t word;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
    return word;
  }
  const std::uint32_t shared_;
};

}  // namespace megafold::cuda
