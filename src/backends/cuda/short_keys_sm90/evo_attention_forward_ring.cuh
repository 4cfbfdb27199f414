// What the Hopper forward for short keys goes round in: a ring of items, a warp that copies them
// and warps that write the terms of their keys.
#pragma once

#include "backends/cuda/short_keys_sm90/evo_attention_common.cuh"

namespace megafold::cuda {

struct HopperShortForwardLayout {
  static constexpr int kWarpgroups = 4;  // that compute
  static constexpr int kTermsWarps = 3;  // take turns at the items
  static constexpr int kCopyWarp = 4 * kWarpgroups + kTermsWarps;
  static constexpr int kThreads = (kCopyWarp + 1) * 32;
  static constexpr int kComputeRegisters = 112, kOtherRegisters = 32;
  static constexpr int kBlocks = 1;       // of a multiprocessor
  static constexpr int kStages = 6;       // of items
  static constexpr int kUnderway = 3;     // copies of as many at a time
  static constexpr int kDealtRounds = 2;  // about as many of a block's items are not fixed
  static constexpr int kKeys = 2 * kVectorTileBytes;  // in a stage, after the queries
  static constexpr int kStageBytes = kKeys + kKeysBytes;
  static constexpr int kTerms = kStages * kStageBytes;
  static constexpr int kOut = kTerms + kStages * kTermBytes;           // a tile of each warpgroup
  static constexpr int kOnes = kOut + kWarpgroups * kVectorTileBytes;  // of 16 keys, beside V
  static constexpr int kOnesBytes = 16 * kVectorPitch;
  // Barriers of a stage: its item has been named, has come with its terms, has been used. All threads
  // that wrote or read something arrive: racecheck does not see that a warp's lanes are ordered
  // before its first one.
  static constexpr int kNamed = kOnes + kOnesBytes;
  static constexpr int kFull = kNamed + kStages * 8;
  static constexpr int kEmpty = kFull + kStages * 8;
  static constexpr int kAlignment = 512;                                // of a swizzle
  static_assert(kStages >= kWarpgroups && kStages % kTermsWarps == 0);  // terms: always one warp's
  static constexpr int kBytes = kEmpty + kStages * 8 + kAlignment;
};

// What the other warps are told about a stage's item.
struct RingItem {
  int4 at;   // batch, row, head, part
  int head;  // counted over all rows; negative: there are no more items
};

// How many warpgroups share an item, each with 64 of its queries.
__device__ __forceinline__ int TilesOfItem(const HopperShortParams& p) {
  return p.queries > kHopperShortQueries ? 2 : 1;
}

// Multiprocessors are not equally fast, so the last items go to who asks first. The count is in
// scratch memory, which holds anything before the call: the first block begins it, with a tag by
// which the others know that it has, and the last to be told a number takes the tag away.
class ItemDealer {
 public:
  static __device__ __forceinline__ void Begin(const HopperShortParams& p) {
    if (p.dealt != nullptr && blockIdx.x == 0) atomicExch(p.dealt, kTag);
  }
  // Asks for a number; the answer takes a while.
  __device__ __forceinline__ void Ask(const HopperShortParams& p) {
    answer_ = atomicAdd(p.dealt, 1ULL);
  }
  // The item that was asked for, past the last one where there is none; a block then asks no more.
  __device__ __forceinline__ int Item(const HopperShortParams& p) {
    while ((answer_ & ~kCount) != kTag) Ask(p);
    const int number = static_cast<int>(answer_ & kCount);
    if (number == p.last_number) atomicExch(p.dealt, 0ULL);
    return p.fixed_items * static_cast<int>(gridDim.x) + number;
  }

 private:
  static constexpr unsigned long long kCount = (1 << 24) - 1;
  static constexpr unsigned long long kTag = 0x4D65676146ULL << 24;
  unsigned long long answer_ = 0;
};

// The ring's barriers; by one thread.
__device__ __forceinline__ void BeginRing(const HopperShortParams& p, std::uint32_t shared) {
  using Layout = HopperShortForwardLayout;
  PrefetchTensorMap(p.q_map);
  PrefetchTensorMap(p.k_map);
  PrefetchTensorMap(p.v_map);
  for (int stage = 0; stage < Layout::kStages; ++stage) {
    const std::uint32_t barrier = shared + stage * 8;
    BarrierInit(barrier + Layout::kNamed, 1);
    BarrierInit(barrier + Layout::kFull, 1 + 32);  // copies, terms
    BarrierInit(barrier + Layout::kEmpty, 128 * TilesOfItem(p));
  }
  BarrierInitFence();
}

// Copies the block's items into the ring as they find room; by one thread. Not more than a few are
// underway at a time: the memory has enough to do with them, and the first come sooner.
__device__ __forceinline__ void CopyItems(const HopperShortParams& p, std::uint32_t shared,
                                          RingItem* items, ItemWalk walk) {
  using Layout = HopperShortForwardLayout;
  RingPosition<Layout::kStages> ring, coming;
  ItemDealer dealer;
  for (int index = 0; true; ++index, ring.Advance()) {
    const std::uint32_t stage = shared + ring.stage * Layout::kStageBytes;
    const std::uint32_t barrier = shared + ring.stage * 8;
    if (index >= Layout::kUnderway) {
      BarrierWait(shared + Layout::kFull + coming.stage * 8, coming.FullParity());
      coming.Advance();
    }
    BarrierWait(barrier + Layout::kEmpty, ring.EmptyParity());
    if (index >= p.fixed_items) walk = ItemWalk(p, dealer.Item(p));
    if (!walk.Inside(p)) break;
    const ItemPlace& at = walk.at;
    items[ring.stage] = {{at.batch, at.row, at.head, at.part}, walk.head};
    BarrierExpect(barrier + Layout::kFull, Layout::kStageBytes);
    CopyTensor(stage, p.q_map, 0, at.part * 2 * kHopperShortQueries, at.head, at.row, at.batch,
               barrier + Layout::kFull);
    CopyShortKeys(p, at, stage + Layout::kKeys, barrier + Layout::kFull);
    BarrierArrive(barrier + Layout::kNamed);
    if (index + 1 < p.fixed_items) {
      walk.Advance(p);
    } else {
      dealer.Ask(p);
    }
  }
  for (int reader = 0; reader < Layout::kWarpgroups; ++reader, ring.Advance()) {
    const std::uint32_t barrier = shared + ring.stage * 8;
    BarrierWait(barrier + Layout::kEmpty, ring.EmptyParity());
    items[ring.stage].head = -1;
    BarrierArrive(barrier + Layout::kNamed);
    BarrierArrive(barrier + Layout::kFull, 1 + 32);  // no terms will be written
  }
}

// Writes the terms of the keys of a warp's items.
template <typename T>
class TermsWriter {
 public:
  // Reads the masks of the first item before it has been named. `turn`: the warp's.
  __device__ __forceinline__ TermsWriter(const HopperShortParams& p, int turn) : turn_(turn) {
    const ItemWalk first(p, static_cast<int>(blockIdx.x + turn * gridDim.x));
    if (first.Inside(p)) Read(p, first.at);
  }
  __device__ __forceinline__ void Run(const HopperShortParams& p, std::uint32_t shared,
                                      const RingItem* items) {
    const float inverse_scale = 1.0F / p.scale;
    RingPosition<Layout::kStages> ring;
    ring.stage = turn_;
    for (bool first = true; true; first = false, ring.Advance(Layout::kTermsWarps)) {
      const std::uint32_t barrier = shared + ring.stage * 8;
      BarrierWait(barrier + Layout::kNamed, ring.FullParity());
      BarrierWait(barrier + Layout::kEmpty, ring.EmptyParity());
      const RingItem item = items[ring.stage];
      if (item.head < 0) return;
      if (!first) Read(p, {item.at.x, item.at.y, item.at.z, item.at.w});
#pragma unroll
      for (int i = 0; i < kKeysOfLane; ++i) {
        WriteTerm<T>(shared + Layout::kTerms + ring.stage * kTermBytes, p, LaneId() + 32 * i,
                     bits_[i], inverse_scale);
      }
      BarrierArrive(barrier + Layout::kFull);
    }
  }

 private:
  using Layout = HopperShortForwardLayout;
  static constexpr int kKeysOfLane = kHopperShortKeys / 32;

  __device__ __forceinline__ void Read(const HopperShortParams& p, const ItemPlace& at) {
#pragma unroll
    for (int i = 0; i < kKeysOfLane; ++i) bits_[i] = ItemMaskBits<T>(p, at, LaneId() + 32 * i);
  }

  int turn_;
  std::uint32_t bits_[kKeysOfLane] = {};
};

}  // namespace megafold::cuda
