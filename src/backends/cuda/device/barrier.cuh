// Hopper's asynchronous copies (bulk and tensor) and the barriers that order them (sm_90).
//
// A stage of a ring has two mbarriers: `full`, which a copy completes by bytes, and `empty`, which
// its readers arrive at. RingPosition walks over the stages and knows the phase to wait for.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backends/cuda/device/ptx.cuh"

namespace megafold::cuda {

// ---- mbarriers, named by their shared-memory address. ----

__device__ __forceinline__ void BarrierInit(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine and to the other blocks of a cluster.
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierArrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// The same for several threads.
__device__ __forceinline__ void BarrierArrive(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
// Arrives once `value` is known: by a predicate that is always true, which the compiler does not
// know. No sum has these bits.
__device__ __forceinline__ void BarrierArriveAfter(std::uint32_t barrier, float value) {
  asm volatile(
      "{\n"
      ".reg .pred known;\n"
      "setp.ne.b32 known, %1, 0xFFFFFFFF;\n"
      "@known mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "}\n" ::"r"(barrier),
      "r"(__float_as_uint(value))
      : "memory");
}
// Arrives and says how many bytes of copies the phase will wait for.
__device__ __forceinline__ void BarrierExpect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Arrives for this thread once all that it has queued with CopyAsync16 and its like is there.
__device__ __forceinline__ void CopyAsyncArrive(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// How long a waiting thread may sleep before it looks again: a spinning one takes issue slots from
// the others.
inline constexpr std::uint32_t kSuspendNanoseconds = 10'000'000;
// Waits until the phase of the given parity has completed.
__device__ __forceinline__ void BarrierWait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, %2;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity), "r"(kSuspendNanoseconds)
      : "memory");
}

// The same where the wait is short and the thread has to go on at once: it does not sleep.
__device__ __forceinline__ void BarrierSpin(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A barrier that is asked before its answer is needed, which takes some 70 cycles to come: Ask()
// while there is other work, then Wait(), of the same phase.
class BarrierLook {
 public:
  __device__ __forceinline__ void Ask(std::uint32_t barrier, std::uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(over_)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
  __device__ __forceinline__ void Wait(std::uint32_t barrier, std::uint32_t parity) const {
    if (over_ == 0) BarrierWait(barrier, parity);
  }

 private:
  std::uint32_t over_ = 0;  // whether the phase was over when it was asked
};

// Arrives at the barrier at the same offset in block `rank` of the cluster, to say that what lies
// in this block has been read: loads whose values have been used, and no others, are before it.
__device__ __forceinline__ void BarrierArriveRemote(std::uint32_t barrier, std::uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// Waits for a phase that other blocks of the cluster complete.
__device__ __forceinline__ void BarrierWaitCluster(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1, %2;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity), "r"(kSuspendNanoseconds)
      : "memory");
}

// Makes what this thread stored in shared memory visible to the matrix units and the copy engine.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Asks for a tensor map that a copy or a store will need soon.
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<std::uint64_t>(&map)) : "memory");
}

// ---- Copies from device to shared memory that complete on an mbarrier. ----

// `bytes` and both addresses are multiples of 16.
__device__ __forceinline__ void CopyBulk(std::uint32_t dst, const void* src, int bytes,
                                         std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(dst),
      "l"(src), "r"(bytes), "r"(barrier)
      : "memory");
}
// A box of a [B, S, N, H, D] tensor from element `d` of D on; what lies outside the tensor arrives
// as zeros.
__device__ __forceinline__ void CopyTensor(std::uint32_t dst, const CUtensorMap& map, int d,
                                           int token, int head, int row, int batch,
                                           std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(dst),
      "l"(reinterpret_cast<std::uint64_t>(&map)), "r"(d), "r"(token), "r"(head), "r"(row),
      "r"(batch), "r"(barrier)
      : "memory");
}
// The other way: the part of a box that lies inside the tensor is written. What was stored in
// shared memory is first made visible with FenceAsyncProxy and a barrier.
__device__ __forceinline__ void StoreTensor(const CUtensorMap& map, std::uint32_t src, int d,
                                            int token, int head, int row, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::
          "l"(reinterpret_cast<std::uint64_t>(&map)),
      "r"(src), "r"(d), "r"(token), "r"(head), "r"(row), "r"(batch)
      : "memory");
}
__device__ __forceinline__ void StoreTensorCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until this thread's stores, all of them committed, have read their sources.
__device__ __forceinline__ void StoreTensorWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Waits until they have also been written, so that what this thread stores next comes after them.
__device__ __forceinline__ void StoreTensorWait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// ---- Barriers of part of a block, clusters, registers. ----

// Waits for `threads` threads at the block's barrier `id` (1 to 15; 0 is __syncthreads).
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Arrives without waiting.
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// Shared memory at the same offset in block `rank` of the cluster.
__device__ __forceinline__ std::uint32_t RemoteAddress(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
// A store there that completes 16 bytes of the phase of a barrier there.
__device__ __forceinline__ void StoreRemote(std::uint32_t remote, float4 value,
                                            std::uint32_t remote_barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(remote),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(remote_barrier)
      : "memory");
}

// A kernel that is launched early (device/launch.cuh): lets the next one begin as soon as every
// block has said so.
__device__ __forceinline__ void LetNextBegin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// Waits until the kernel before has ended and what it wrote can be read; at once in a kernel that
// was not launched early. Every kernel of a LaunchChain calls it, at its end if it needs nothing of
// the one before: then whoever waits for this one knows that all before it have ended too.
__device__ __forceinline__ void WaitForPrevious() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// A warpgroup's registers a thread, a multiple of 8. Every warp of the warpgroup executes it.
template <int kRegisters>
__device__ __forceinline__ void GiveUpRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// One lane of a converged warp.
__device__ __forceinline__ bool ElectOne() {
  std::uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// A walk over a ring of kStages stages.
template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
  // By up to kStages.
  __device__ __forceinline__ void Advance(int stages) {
    stage += stages;
    if (stage >= kStages) {
      stage -= kStages;
      phase ^= 1;
    }
  }
  // Parity to wait for at `full` barriers, and at `empty` ones (a ring begins empty).
  __device__ __forceinline__ std::uint32_t FullParity() const { return phase; }
  __device__ __forceinline__ std::uint32_t EmptyParity() const { return phase ^ 1; }
};

}  // namespace megafold::cuda
