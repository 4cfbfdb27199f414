// Forward of EvoAttention on Hopper: one warpgroup copies, two or three compute.
//
// A block takes work items from a list: the queries of its computing warpgroups, 64 each, of one
// head, for `rows` rows that share the bias. The accumulators and sums of every row stay in a
// warpgroup's registers. It walks over the keys in tiles of 64: the bias of its 64 x 64 scores is
// read into registers once and serves the rows in turn. A "step" is one row of one tile. P V of a
// step runs under the scores of the next one, and the warpgroups under each other.
//
// Issue slots are what is short, so the matrix units do what they can. Sixteen more columns of
// Q K^T, {-shift / scale in three parts, 1, 1, 1, 0 ...} times {1, 1, 1, mask / scale in three
// parts, 0 ...}, add the mask and take the query's shift off. What is left of a score's way to p is
// x = scale log2(e) s + bias and 2^x.
//
// The shift is not the maximum. bfloat16 has float32's range: shifts stay 0 and nothing looks at
// the sums before an item's end. If one is not in a safe range then, and the mask lets its row see
// keys, the block does the item again when it is through with its list, with shifts. Those begin as
// 0 and change when the sums of a step say that p has become too large, or at first too small, for
// its type, so that the usual step needs neither a maximum nor a shuffle. float16's range is too
// small for that: its items have such shifts at once.
#pragma once

#include "backends/cuda/sm90/evo_attention_forward_copies.cuh"
#include "backends/cuda/sm90/evo_attention_forward_worker.cuh"

namespace megafold::cuda {

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
    BarrierInit(shared + Layout::kAllMarked, kReaders);
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
  ForwardMarks<Layout>(shared).Clear();
  __syncthreads();
  constexpr bool kMarks = !kFitsInSteps<T>;
  const int warpgroup = Warpgroup();
  if (warpgroup == 0) {
    GiveUpRegisters<kTiling.CopyRegisters()>();
    ForwardCopies<kDim, Tiling, kHasBias, kMarks>(p, shared);
    return;
  }
  TakeRegisters<kTiling.ComputeRegisters()>();
  ForwardPositions<Layout> at;
  const auto run = [&]<ForwardPass kPass>(std::integral_constant<ForwardPass, kPass>) {
    ForwardWorker<T, kDim, Tiling, kHasBias, kPass>(p, shared, warpgroup - 1, at).Run();
  };
  if constexpr (kMarks) {
    run(std::integral_constant<ForwardPass, ForwardPass::kAllMarking>{});
    BarrierArrive(shared + Layout::kAllMarked);
    if (!ForwardMarks<Layout>(shared).Any()) return;
    run(std::integral_constant<ForwardPass, ForwardPass::kMarkedFitting>{});
  } else {
    run(std::integral_constant<ForwardPass, ForwardPass::kAllFitting>{});
  }
}

}  // namespace megafold::cuda
