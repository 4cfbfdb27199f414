// Forward of EvoAttention on Hopper: what a computing warpgroup does (evo_attention_forward.cuh).
#pragma once

#include "backends/cuda/sm90/evo_attention_forward_layout.cuh"
#include "backends/cuda/sm90/evo_attention_forward_row.cuh"

namespace megafold::cuda {

// Where a computing warpgroup stands in the rings.
template <typename Layout>
struct ForwardPositions {
  RingPosition<Layout::kQStages> next;  // the place of the item after the present one
  RingPosition<(Layout::kBiasStages > 0 ? Layout::kBiasStages : 1)> bias;
  RingPosition<Layout::kStages> keys;
  int stored = -1;  // the stage of Q whose outputs are leaving
};

// Whether shifts are fitted to the sums: if not, items whose sums are not safe are marked. And
// which of the block's items are computed.
enum class ForwardPass { kAllMarking, kAllFitting, kMarkedFitting };

template <typename T, int kDim, typename Tiling, bool kHasBias, ForwardPass kPass>
class ForwardWorker {
 public:
  using Layout = ForwardLayout<kDim, Tiling, kHasBias>;

  __device__ __forceinline__ ForwardWorker(const HopperAttentionParams& p, std::uint32_t shared,
                                           int group, ForwardPositions<Layout>& at)
      : p_(p),
        shared_(shared),
        group_(group),
        at_(at),
        items_(ForwardItems(p, Tiling::kValue)),
        tiles_((p.queries + Tiling::kValue.Queries() - 1) / Tiling::kValue.Queries()),
        index_(static_cast<int>(blockIdx.x)),
        tile_(static_cast<int>(blockIdx.x) % tiles_),
        tile_step_(static_cast<int>(gridDim.x) % tiles_),
        inverse_scale_(1.0F / p.scale_log2) {}

  // The last P V of an item and its end run in the first step of the next one, if that is the
  // warpgroup's too; where shifts are fitted there are no registers for that.
  __device__ __forceinline__ void Run() {
    if (kPass == ForwardPass::kMarkedFitting && Leads()) StoreTensorWait();  // of the same outputs
#pragma unroll 1
    for (bool more = Find();; more = Next()) {
      const bool mine = more && IsMine();
      if (pending_ && (kFits || !mine)) FinishItem();
      if (!more) break;
      if (mine) {
        Compute();
      } else {
        Skip();
      }
      pending_ = mine;
    }
    ReleaseStored();
  }

 private:
  static constexpr bool kFits = kPass != ForwardPass::kAllMarking;
  using Descriptor = typename Layout::Tile::Descriptor;
  static constexpr int kRows = Layout::kRows;
  // The weights of the step before are needed until its product is done: with registers for two
  // sets, that is after the exponentials.
  static constexpr int kWeightSets = Layout::kGroups == 2 ? 2 : 1;
  static_assert(kRows % kWeightSets == 0);

  static __device__ __forceinline__ bool Leads() { return threadIdx.x % 128 == 0; }
  // By every thread: faster than by one lane of a warp.
  __device__ __forceinline__ void Release(std::uint32_t ring, int stage) const {
    BarrierArrive(EmptyBarrier(ring, stage));
  }

  // Waits for the queries of the present item or the next one that is to be computed; false: there
  // is none.
  __device__ __forceinline__ bool Find() {
    if constexpr (kPass == ForwardPass::kMarkedFitting) {
      while (index_ < items_ && !ForwardMarks<Layout>(shared_).Has(slot_)) Step();
    }
    before_ = stage_;
    if (index_ >= items_) return false;
    stage_ = at_.next.stage;
    BarrierWait(FullBarrier(shared_ + Layout::kQBarriers, stage_), at_.next.FullParity());
    at_.next.Advance();
    return true;
  }
  __device__ __forceinline__ bool Next() {
    Step();
    return Find();
  }
  __device__ __forceinline__ void Step() {
    ++slot_;
    index_ += static_cast<int>(gridDim.x);
    tile_ += tile_step_;  // dividing takes long
    if (tile_ >= tiles_) tile_ -= tiles_;
  }
  __device__ __forceinline__ std::uint32_t Place(int stage) const {
    return shared_ + Layout::kPlaces + stage * Layout::kPlaceBytes;
  }
  __device__ __forceinline__ std::uint32_t Queries(int stage) const {
    return shared_ + Layout::kQ + stage * Layout::kQBytes + group_ * Layout::Tile::kBytes;
  }
  // Not all of the warpgroup's queries lie past the last one.
  __device__ __forceinline__ bool IsMine() const {
    return tile_ * Tiling::kValue.Queries() + group_ * kHopperTile < p_.queries;
  }

  // Gives the queries' places of the item before back, once its outputs have left from there.
  __device__ __forceinline__ void ReleaseStored() {
    if (at_.stored >= 0 && Leads()) {
      StoreTensorWaitRead();
      BarrierArrive(EmptyBarrier(shared_ + Layout::kQBarriers, at_.stored));
    }
    at_.stored = -1;
  }

  // scores = Q K^T - shift / scale + mask / scale of row r.
  __device__ __forceinline__ void MultiplyKeys(std::uint32_t q, std::uint32_t k,
                                               const ForwardRow<kDim>& row, std::uint32_t mask) {
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      Wgmma<T, kHopperTile>::template Run<Order::kKMajor>(
          scores_, Descriptor::FromLow(q + step * Descriptor::kStepKMajor),
          Descriptor::FromLow(k + step * Descriptor::kStepKMajor), step > 0);
    }
    const std::uint32_t left[4] = {row.left[0], row.left[1], 0U, 0U};
    constexpr std::uint64_t kHigh = HalvesDescriptor(0, 0) & 0xFFFFFFFF00000000ULL;
    Wgmma<__nv_bfloat16, kHopperTile>::template Run<Order::kKMajor>(scores_, left, kHigh | mask,
                                                                    true);
    WgmmaCommit();
  }

  // out (+)= P V of row r.
  __device__ __forceinline__ void MultiplyValues(ForwardRow<kDim>& row,
                                                 const std::uint32_t (&weights)[kScores / 2],
                                                 std::uint32_t v, bool accumulate) {
    PinRegisters(row.out);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kHopperTile / 16; ++step) {
      const std::uint32_t a[4] = {weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
                                  weights[4 * step + 3]};
      Wgmma<T, kDim>::template Run<Order::kMnMajor>(
          row.out, a, Descriptor::FromLow(v + step * Descriptor::kStepMnMajor),
          accumulate || step > 0);
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void TakeBias() {
    const std::uint32_t ring = shared_ + Layout::kBiasBarriers;
    BarrierWait(FullBarrier(ring, at_.bias.stage), at_.bias.FullParity());
    LoadBias(bias_, shared_ + Layout::kBias + at_.bias.stage * Layout::kBiasBytes +
                        group_ * kBiasTileBytes + threadIdx.x % 128 * 16);
  }

  // Not right after the loads, which an arrival overtakes while they wait for shared memory: `sum`
  // depends on all that was loaded.
  __device__ __forceinline__ void ReleaseBias(const float (&sum)[2]) {
    BarrierArriveAfter(EmptyBarrier(shared_ + Layout::kBiasBarriers, at_.bias.stage),
                       sum[0] + sum[1]);
    at_.bias.Advance();
  }

  // Where no item of the warpgroup's follows at once.
  __device__ __forceinline__ void FinishItem() {
    MultiplyValues(rows_[kRows - 1], weights_[kWeightSets - 1], ValuesTile(previous_), true);
    WgmmaWait<0>();
    __syncwarp();
    Release(shared_ + Layout::kStageBarriers, previous_);
    EndItem();
    arrived_ = BarrierLook();  // what was asked about may not be the next step's
    pending_ = false;
  }

  __device__ __forceinline__ std::uint32_t ValuesTile(int stage) const {
    return Descriptor::Low(shared_ + Layout::kStage + Layout::kV) +
           stage * (Layout::kStageBytes / 16);
  }

  __device__ __forceinline__ void Compute() {
    if (!pending_) previous_ = at_.keys.stage;
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows_[r].ClearColumns();
    if constexpr (kFits) {
#pragma unroll 1
      for (int tile = 0; tile < p_.key_tiles; ++tile) ComputeTile(tile, tile == 0);
    } else {
      ComputeTile(0, std::true_type{});
#pragma unroll 1
      for (int tile = 1; tile < p_.key_tiles; ++tile) ComputeTile(tile, std::false_type{});
    }
  }

  // `first`: tile is 0.
  template <typename First>
  __device__ __forceinline__ void ComputeTile(int tile, First first) {
    const std::uint32_t ring = shared_ + Layout::kStageBarriers;
    const std::uint32_t q_tile = Descriptor::Low(Queries(stage_));
    const std::uint32_t k_tile = Descriptor::Low(shared_ + Layout::kStage + Layout::kK);
    constexpr std::uint32_t kNextQ = Layout::kGroups * Layout::Tile::kBytes / 16;
    constexpr std::uint32_t kNextStage = Layout::kStageBytes / 16;
    // Mask columns of stage i are at mask_tile + i * next_mask.
    const std::uint32_t first_mask =
        shared_ + (p_.mask_columns.tiles != nullptr ? Layout::kMask : Layout::kNoMask);
    const auto mask_tile =
        static_cast<std::uint32_t>(HalvesDescriptor(first_mask, shared_ + Layout::kZeros));
    constexpr std::uint32_t kMaskUnits = kMaskColumnsBytes / 16;
    const std::uint32_t next_mask =
        p_.mask_columns.tiles != nullptr ? kMaskUnits - (kMaskUnits << 16) : 0U;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int stage = at_.keys.stage;
      arrived_.Wait(FullBarrier(ring, stage), at_.keys.FullParity());
      at_.keys.Advance();
      MultiplyKeys(q_tile + r * kNextQ, k_tile + stage * kNextStage, rows_[r],
                   mask_tile + stage * next_mask);
      // P V of the step before, which may be the last one of the item before. No product may depend
      // on a branch: the compiler would make all of them wait. So a block's first step has one too,
      // of whatever is there, into the row whose own first product overwrites it.
      MultiplyValues(rows_[(r + kRows - 1) % kRows], weights_[(r + kWeightSets - 1) % kWeightSets],
                     ValuesTile(previous_), r == 0 ? tile != 1 : !first);
      if constexpr (kHasBias) {
        if (r == 0) TakeBias();
      }
      if (r == 0 && tile == p_.key_tiles / 2) ReleaseStored();
      WgmmaWait<1>();  // Q K^T
      PinRegisters(scores_);
      float x[kScores];
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        x[i] = kHasBias ? fmaf(scores_[i], p_.scale_log2, bias_[i]) : scores_[i] * p_.scale_log2;
      }
      const auto finish_previous = [&] {
        WgmmaWait<0>();
        if (r > 0 || !first || (!kFits && pending_)) Release(ring, previous_);
      };
      if constexpr (kWeightSets == 1) finish_previous();
      std::uint32_t(&weights)[kScores / 2] = weights_[r % kWeightSets];
      float sum[2];
      arrived_.Ask(FullBarrier(ring, at_.keys.stage), at_.keys.FullParity());
      Exponentials<T>(weights, sum, x);
      if constexpr (kWeightSets == 2) finish_previous();
      if (r == 0 && first) {
        if (!kFits && pending_) EndItem();
#pragma unroll
        for (int row = 0; row < kRows; ++row) rows_[row].ClearSums();
      }
      if constexpr (kFits) {
        if (rows_[r].NeedsFit(sum)) {
          rows_[r].Fit(x, first, inverse_scale_);
          Exponentials<T>(weights, sum, x);
        }
      }
      if constexpr (kHasBias) {
        if (r == 0) ReleaseBias(sum);
      }
      rows_[r].sum[0] += sum[0];
      rows_[r].sum[1] += sum[1];
      previous_ = stage;
    }
  }

  // The end of the item before the present one: its outputs take the places of its queries, and
  // leave from there as tiles.
  __device__ __forceinline__ void EndItem() {
    constexpr int kNextTile = Layout::kGroups * Layout::Tile::kBytes;
    const std::uint32_t tiles = Queries(before_);
    const ForwardPlace place = ForwardPlace::Load(Place(before_));
    const int first_query = place.query + group_ * kHopperTile;
    GroupRow rows[kRows];
    float lse[kRows][2];
    std::uint32_t unsafe = 0;  // a bit for each row
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rows[r] = ForwardPlace::LoadRow(Place(before_), r);
      const ForwardEnd end(rows_[r]);
      WriteTile<T, kDim>(tiles + r * kNextTile, rows_[r].out, end.factor[0], end.factor[1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) lse[r][half] = end.lse[half];
      if (!end.safe) unsafe |= 1U << r;
    }
    if constexpr (!kFits) {
      if (__any_sync(0xFFFFFFFFU, unsafe != 0) != 0) Mark(place.slot, unsafe);
    }
    FenceAsyncProxy();
    NamedBarrierSync(1 + group_, 128);
    if (Leads()) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= place.rows) break;
        Layout::Tile::Store(p_.out_map, tiles + r * kNextTile, first_query, place.head, rows[r]);
      }
      StoreTensorCommit();
    }
    __syncwarp();
    at_.stored = before_;
    if (threadIdx.x % 4 != 0) return;
    const int query = first_query + Fragment().row;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {  // after the fence, which would wait for them
      if (r >= place.rows) break;
      const int row = rows[r].batch * static_cast<int>(p_.batch_rows) + rows[r].row;
      float* const to =
          p_.lse + static_cast<std::int64_t>(row * p_.heads + place.head) * p_.queries + query;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (query + half * 8 < p_.queries) to[half * 8] = lse[r][half];
      }
    }
  }

  // Marks the item before the present one, of which this thread has `unsafe` rows, unless the mask
  // hides all of their keys.
  __device__ __forceinline__ void Mark(int slot, std::uint32_t unsafe) const {
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      if (__any_sync(0xFFFFFFFFU, (unsafe >> r & 1U) != 0) == 0) continue;
      if (SeesKeys(ForwardPlace::LoadRow(Place(before_), r))) {
        ForwardMarks<Layout>(shared_).Set(slot);
      }
    }
    __syncwarp();
  }
  // Whether the mask lets a row see any key, of those that this lane looks at.
  __device__ __forceinline__ bool SeesKeys(const GroupRow& at) const {
    if (p_.mask_columns.tiles == nullptr) return true;
    const auto* columns = reinterpret_cast<const uint2*>(MaskColumnsRow(p_, at));
    bool seen = false;
#pragma unroll 1
    for (int key = static_cast<int>(threadIdx.x % 32); key < p_.key_tiles * kHopperTile;
         key += 32) {
      const float high = __uint_as_float(columns[2 * key].y & 0xFFFF0000U);
      seen = seen || high * p_.scale_log2 > kHidden;
    }
    return seen;
  }

  // All of the warpgroup's queries lie past the last one: it frees what was copied.
  __device__ __forceinline__ void Skip() {
    const auto skip = [&](std::uint32_t ring, auto& position) {
      BarrierWait(FullBarrier(ring, position.stage), position.FullParity());
      __syncwarp();
      Release(ring, position.stage);
      position.Advance();
    };
    ReleaseStored();
    at_.stored = stage_;
    ReleaseStored();
#pragma unroll 1
    for (int tile = 0; tile < p_.key_tiles; ++tile) {
      if constexpr (kHasBias) skip(shared_ + Layout::kBiasBarriers, at_.bias);
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) skip(shared_ + Layout::kStageBarriers, at_.keys);
    }
  }

  const HopperAttentionParams& p_;
  const std::uint32_t shared_;
  const int group_;
  ForwardPositions<Layout>& at_;
  const int items_, tiles_;  // of the problem: all items, tiles of queries of a row
  int index_, slot_ = 0;     // of the present item among all, and among the block's
  int tile_;                 // its tile of queries
  const int tile_step_;
  int stage_ = 0, before_ = 0;  // of its queries, and of those of the item before
  const float inverse_scale_;
  BarrierLook arrived_;   // K and V of the step
  int previous_ = 0;      // the stage of the step before
  bool pending_ = false;  // the item before has not ended
  ForwardRow<kDim> rows_[kRows];
  float scores_[kScores];
  float bias_[kScores];
  std::uint32_t weights_[kWeightSets][kScores / 2];
};

}  // namespace megafold::cuda
