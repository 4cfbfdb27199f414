// Forward of EvoAttention on Hopper: one warpgroup copies, two or three compute.
//
// A block takes work items from a list: the queries of its computing warpgroups, 64 each, of one
// head, for `rows` rows that share the bias. The accumulators and the running maximum and sum of
// every row stay in a warpgroup's registers. It walks over the keys in tiles of 64: the bias of its
// 64 x 64 scores is read into registers once and serves the rows in turn. A "step" is one row of
// one tile. P V of a step runs under the scores of the next one, and the warpgroups under each
// other.
//
// Issue slots are what is short, so the matrix units do what they can. Sixteen more columns of
// Q K^T, {-shift / scale in three parts, 1, 1, 1, 0 ...} times {1, 1, 1, mask / scale in three
// parts, 0 ...}, add the mask and take the query's shift off. What is left of a score's way to p is
// x = scale log2(e) s + bias and 2^x.
//
// The shift is not the running maximum: it begins as 0 and changes when the sums say that p has
// become too large, or at first too small, for its type. So the usual step needs neither a maximum
// nor a shuffle.
#pragma once

#include "backends/cuda/sm90/evo_attention_forward_copies.cuh"
#include "backends/cuda/sm90/evo_attention_forward_row.cuh"

namespace megafold::cuda {

template <typename T, int kDim, typename Tiling, bool kHasBias>
class ForwardWorker {
 public:
  __device__ __forceinline__ ForwardWorker(const HopperAttentionParams& p, std::uint32_t shared,
                                           int group)
      : p_(p), shared_(shared), group_(group) {}

  __device__ __forceinline__ void Run() {
    const int items = ForwardItems(p_, Tiling::kValue);
#pragma unroll 1
    for (int index = static_cast<int>(blockIdx.x); index < items;
         index += static_cast<int>(gridDim.x)) {
      const ForwardItem item(p_, Tiling::kValue, index);
      const int first_query = item.query + group_ * kHopperTile;
      if (first_query < p_.queries) {
        Compute(item, first_query);
      } else {
        Skip();
      }
    }
    if (Leads()) StoreTensorWaitRead();  // before the block ends
  }

 private:
  using Layout = ForwardLayout<kDim, Tiling, kHasBias>;
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

  // Gives the queries' places of the item before back, once its outputs have left from there.
  __device__ __forceinline__ void ReleaseStored() {
    if (stored_ >= 0 && Leads()) {
      StoreTensorWaitRead();
      BarrierArrive(EmptyBarrier(shared_ + Layout::kQBarriers, stored_));
    }
    stored_ = -1;
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
    BarrierWait(FullBarrier(ring, bias_at_.stage), bias_at_.FullParity());
    LoadBias(bias_, shared_ + Layout::kBias + bias_at_.stage * Layout::kBiasBytes +
                        group_ * kBiasTileBytes + threadIdx.x % 128 * 16);
  }

  // Not right after the loads, which an arrival overtakes while they wait for shared memory: after
  // a branch that depends on all that was loaded.
  __device__ __forceinline__ void ReleaseBias() {
    Release(shared_ + Layout::kBiasBarriers, bias_at_.stage);
    bias_at_.Advance();
  }

  __device__ __forceinline__ void Compute(const ForwardItem& item, int first_query) {
    const std::uint32_t ring = shared_ + Layout::kStageBarriers;
    const std::uint32_t q_tile = Descriptor::Low(
        shared_ + Layout::kQ + q_at_.stage * Layout::kQBytes + group_ * Layout::Tile::kBytes);
    const std::uint32_t k_tile = Descriptor::Low(shared_ + Layout::kStage + Layout::kK);
    const std::uint32_t v_tile = Descriptor::Low(shared_ + Layout::kStage + Layout::kV);
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
    const float inverse_scale = 1.0F / p_.scale_log2;
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows_[r].Clear();
    BarrierWait(FullBarrier(shared_ + Layout::kQBarriers, q_at_.stage), q_at_.FullParity());
    int previous = at_.stage;
    BarrierLook arrived;  // K and V of the step

#pragma unroll 1
    for (int tile = 0; tile < p_.key_tiles; ++tile) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int stage = at_.stage;
        arrived.Wait(FullBarrier(ring, stage), at_.FullParity());
        at_.Advance();
        MultiplyKeys(q_tile + r * kNextQ, k_tile + stage * kNextStage, rows_[r],
                     mask_tile + stage * next_mask);
        // P V of the step before. No product may depend on a branch: the compiler would make all of
        // them wait. So the first step has one too, of whatever is there, into the row whose own
        // first product overwrites it.
        MultiplyValues(rows_[(r + kRows - 1) % kRows],
                       weights_[(r + kWeightSets - 1) % kWeightSets],
                       v_tile + previous * kNextStage, tile > (r == 0 ? 1 : 0));
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
          if (tile + r > 0) Release(ring, previous);
        };
        if constexpr (kWeightSets == 1) finish_previous();
        std::uint32_t(&weights)[kScores / 2] = weights_[r % kWeightSets];
        float sum[2];
        arrived.Ask(FullBarrier(ring, at_.stage), at_.FullParity());
        Exponentials<T>(weights, sum, x);
        const bool fit = rows_[r].NeedsFit(sum);
        if constexpr (kWeightSets == 2) finish_previous();
        if (fit) {
          rows_[r].Fit(x, tile == 0, inverse_scale);
          Exponentials<T>(weights, sum, x);
        }
        if constexpr (kHasBias) {
          if (r == 0) ReleaseBias();
        }
        rows_[r].sum[0] += sum[0];
        rows_[r].sum[1] += sum[1];
        previous = stage;
      }
    }
    MultiplyValues(rows_[kRows - 1], weights_[kWeightSets - 1], v_tile + previous * kNextStage,
                   p_.key_tiles > 1);
    WgmmaWait<0>();
    __syncwarp();
    Release(ring, previous);
    Store(item, first_query);
    q_at_.Advance();
  }

  // The outputs take the places of the queries, and leave from there as tiles.
  __device__ __forceinline__ void Store(const ForwardItem& item, int first_query) {
    const std::uint32_t tiles =
        shared_ + Layout::kQ + q_at_.stage * Layout::kQBytes + group_ * Layout::Tile::kBytes;
    constexpr int kNextTile = Layout::kGroups * Layout::Tile::kBytes;
    const int query = first_query + Fragment().row;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      PinRegisters(rows_[r].out);
      if (item.row + r >= p_.rows) break;
      const GroupRow at(p_, item.group, item.row + r);
      const std::int64_t batch_row = at.batch * p_.batch_rows + at.row;
      FinishForwardRow(rows_[r], p_.lse + (batch_row * p_.heads + item.head) * p_.queries + query,
                       p_.queries - query);
      WriteTile<T, kDim>(tiles + r * kNextTile, rows_[r].out, 1.0F);
    }
    FenceAsyncProxy();
    NamedBarrierSync(1 + group_, 128);
    if (Leads()) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (item.row + r >= p_.rows) break;
        const GroupRow at(p_, item.group, item.row + r);
        Layout::Tile::Store(p_.out_map, tiles + r * kNextTile, first_query, item.head, at);
      }
      StoreTensorCommit();
    }
    __syncwarp();
    stored_ = q_at_.stage;
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
    BarrierWait(FullBarrier(shared_ + Layout::kQBarriers, q_at_.stage), q_at_.FullParity());
    stored_ = q_at_.stage;
    ReleaseStored();
    q_at_.Advance();
#pragma unroll 1
    for (int tile = 0; tile < p_.key_tiles; ++tile) {
      if constexpr (kHasBias) skip(shared_ + Layout::kBiasBarriers, bias_at_);
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) skip(shared_ + Layout::kStageBarriers, at_);
    }
  }

  const HopperAttentionParams& p_;
  const std::uint32_t shared_;
  const int group_;
  RingPosition<Layout::kQStages> q_at_;
  RingPosition<kHasBias ? Layout::kBiasStages : 1> bias_at_;
  RingPosition<Layout::kStages> at_;
  int stored_ = -1;  // the stage of Q whose outputs are leaving
  ForwardRow<kDim> rows_[kRows];
  float scores_[kScores];
  float bias_[kScores];
  std::uint32_t weights_[kWeightSets][kScores / 2];
};

template <typename T, int kDim, typename Tiling, bool kHasBias>
__global__ __launch_bounds__(Tiling::kValue.Threads(), 1) void ForwardKernel(
    const __grid_constant__ HopperAttentionParams p) {
  using Layout = ForwardLayout<kDim, Tiling, kHasBias>;
  constexpr HopperForwardTiling kTiling = Tiling::kValue;
  extern __shared__ unsigned char memory[];
  const std::uint32_t shared = (SharedAddress(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    const auto init = [&](std::uint32_t ring, int stages, int readers) {
      for (int stage = 0; stage < stages; ++stage) {
        BarrierInit(FullBarrier(ring, stage), 1);
        BarrierInit(EmptyBarrier(ring, stage), readers);
      }
    };
    constexpr int kReaders = kTiling.groups * 128;
    init(shared + Layout::kQBarriers, Layout::kQStages, kTiling.groups);
    init(shared + Layout::kBiasBarriers, Layout::kBiasStages, kReaders);
    init(shared + Layout::kStageBarriers, Layout::kStages, kReaders);
    BarrierInitFence();
  }
  if (threadIdx.x < 2 * kHopperTile) {  // the columns without a mask, and the zeros after them
    const std::uint32_t ones = threadIdx.x < kHopperTile ? 0x3F803F80U : 0U;
    const auto at = shared + Layout::kNoMask + static_cast<std::uint32_t>(threadIdx.x) * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %3};" ::"r"(at), "r"(ones),
                 "r"(ones & 0xFFFFU), "r"(0U)
                 : "memory");
    FenceAsyncProxy();
  }
  __syncthreads();
  const int warpgroup = Warpgroup();
  if (warpgroup == 0) {
    GiveUpRegisters<kTiling.CopyRegisters()>();
    if (threadIdx.x == 0) ForwardCopies<kDim, Tiling, kHasBias>(p, shared);
  } else {
    TakeRegisters<kTiling.ComputeRegisters()>();
    ForwardWorker<T, kDim, Tiling, kHasBias>(p, shared, warpgroup - 1).Run();
  }
}

}  // namespace megafold::cuda
