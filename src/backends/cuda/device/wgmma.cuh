// Hopper's warpgroup matrix products (sm_90a) on 16-bit operands with float accumulators.
//
// D[64, N] += A[64, 16] B[16, N]. A warpgroup is four warps, the first at a multiple of four.
// Thread t (warp w = t / 32, lane l = t % 32) holds of D, in d[4 j + i], row 16 w + l / 4 + 8 (i /
// 2) and column 8 j + 2 (l % 4) + i % 2. A in registers has the same order: two neighbouring column
// groups of an accumulator, rounded to 16 bits, are the A of one step, so a product's result feeds
// the next product without a shuffle (ScoresAsA).
//
// Shared-memory tiles are what tensor copies with a swizzle of 32, 64 or 128 bytes write: 64 rows
// of that many bytes, starting on 1024 bytes; with 32, such strips of 16 columns follow one
// another. A tile serves K-major (rows are M or N, columns K: Q and K of Q K^T) or MN-major (rows
// are K, columns N: V of P V).
#pragma once

#include <cstdint>

#include "backends/cuda/device/ptx.cuh"

namespace megafold::cuda {

// What the matrix units see of a shared-memory tile of kPitch-byte rows.
template <int kPitch>
struct TileDescriptor {
  static_assert(kPitch == 32 || kPitch == 64 || kPitch == 128);
  static constexpr std::uint32_t kStripBytes = 64 * kPitch;
  // Rows go in groups of eight; the pitch names the swizzle. The leading offset goes from strip to
  // strip; it is not used where a row is one swizzle span. Shared memory ends below 2^18; above
  // that an address has the block's rank in its cluster, which would get into the leading offset.
  // Tiles can be found by adding to the low half.
  static __device__ __forceinline__ std::uint32_t Low(std::uint32_t address) {
    if constexpr (kPitch != 32) return address / 16 + (1U << 16);
    return (address & 0x3FFFF) / 16 + (kStripBytes / 16 << 16);
  }
  // The same of an MN-major tile whose columns go on after kPitch bytes at `next`, which lies
  // behind it, and what is added to the low half for the next 16 of K whose columns go on there
  // too.
  static __device__ __forceinline__ std::uint32_t Low(std::uint32_t address, std::uint32_t next) {
    return address / 16 + ((next - address) / 16 << 16);
  }
  static __device__ __forceinline__ std::uint64_t FromLow(std::uint32_t low) {
    constexpr std::uint32_t kSwizzle = kPitch == 32 ? 3 : kPitch == 64 ? 2 : 1;
    constexpr std::uint32_t kHigh = kSwizzle << 30 | 8 * kPitch / 16;
    return static_cast<std::uint64_t>(kHigh) << 32 | low;
  }
  // Added to the low half: the next 16 of K for a K-major tile, and for an MN-major one.
  static constexpr std::uint32_t kStepKMajor = (kPitch == 32 ? kStripBytes : 32) / 16;
  static constexpr std::uint32_t kStepMnMajor = 16 * kPitch / 16;
  static constexpr std::uint32_t kStepMnMajorSameNext = kStepMnMajor - (kStepMnMajor << 16);
};

// The same for K-major tiles of 16 columns without a swizzle: `left` and `right` are the addresses
// of their halves, each of rows of 8 columns that follow one another. `right` is `left` or comes
// after it.
__device__ constexpr std::uint64_t HalvesDescriptor(std::uint32_t left, std::uint32_t right) {
  return std::uint64_t{8 * 16 / 16} << 32 | ((right - left) >> 4) << 16 | (left & 0x3FFFF) >> 4;
}

// The same of a tile whose groups of eight rows are all equal: both halves are eight rows.
__device__ constexpr std::uint64_t SameRowsDescriptor(std::uint32_t left, std::uint32_t right) {
  return HalvesDescriptor(left, right) & 0xFFFFFFFFULL;
}

enum class Order : int { kKMajor = 0, kMnMajor = 1 };

// Before the first product of a batch: registers written by ordinary instructions are ready.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of accumulators over a wait, or their writes over a fence.
template <int kCount>
__device__ __forceinline__ void PinRegisters(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// One product of a batch. `accumulate` false overwrites d.
template <typename T, int kN>
struct Wgmma;

// clang-format off
#define MEGAFOLD_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                       "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MEGAFOLD_D4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define MEGAFOLD_D16 MEGAFOLD_D8(0), MEGAFOLD_D8(8)
#define MEGAFOLD_D20 MEGAFOLD_D16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define MEGAFOLD_D24 MEGAFOLD_D16, MEGAFOLD_D8(16)
#define MEGAFOLD_D32 MEGAFOLD_D24, MEGAFOLD_D8(24)
#define MEGAFOLD_D64 MEGAFOLD_D32, MEGAFOLD_D8(32), MEGAFOLD_D8(40), MEGAFOLD_D8(48), \
                     MEGAFOLD_D8(56)
#define MEGAFOLD_D4_NAMES "{%0, %1, %2, %3}, "
#define MEGAFOLD_D16_NAMES "{%0, %1, %2, %3, %4, %5, %6, %7, " \
                           "%8, %9, %10, %11, %12, %13, %14, %15}, "
#define MEGAFOLD_D20_NAMES "{%0, %1, %2, %3, %4, %5, %6, %7, " \
                           "%8, %9, %10, %11, %12, %13, %14, %15, " \
                           "%16, %17, %18, %19}, "
#define MEGAFOLD_D24_NAMES "{%0, %1, %2, %3, %4, %5, %6, %7, " \
                           "%8, %9, %10, %11, %12, %13, %14, %15, " \
                           "%16, %17, %18, %19, %20, %21, %22, %23}, "
#define MEGAFOLD_D32_NAMES "{%0, %1, %2, %3, %4, %5, %6, %7, " \
                           "%8, %9, %10, %11, %12, %13, %14, %15, " \
                           "%16, %17, %18, %19, %20, %21, %22, %23, " \
                           "%24, %25, %26, %27, %28, %29, %30, %31}, "
#define MEGAFOLD_D64_NAMES "{%0, %1, %2, %3, %4, %5, %6, %7, " \
                           "%8, %9, %10, %11, %12, %13, %14, %15, " \
                           "%16, %17, %18, %19, %20, %21, %22, %23, " \
                           "%24, %25, %26, %27, %28, %29, %30, %31, " \
                           "%32, %33, %34, %35, %36, %37, %38, %39, " \
                           "%40, %41, %42, %43, %44, %45, %46, %47, " \
                           "%48, %49, %50, %51, %52, %53, %54, %55, " \
                           "%56, %57, %58, %59, %60, %61, %62, %63}, "
// Operands follow the accumulators in the order of their numbers.
#define MEGAFOLD_WGMMA(T, kType, kN, kCount, n0, n1, n2, n3, n4, n5, n6)                           \
  template <>                                                                                      \
  struct Wgmma<T, kN> {                                                                            \
    template <Order kB>                                                                            \
    static __device__ __forceinline__ void Run(float (&d)[kCount], const std::uint32_t (&a)[4],    \
                                               std::uint64_t b, bool accumulate) {                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n5 ", 0;\n"                               \
                   "wgmma.mma_async.sync.aligned.m64n" #kN "k16.f32." kType "." kType " "          \
                   MEGAFOLD_D##kCount##_NAMES                                                      \
                   "{%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", p, 1, 1, %" #n6 ";\n}\n"   \
                   : MEGAFOLD_D##kCount                                                            \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                           \
                     "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)));                \
    }                                                                                              \
    template <Order kB, Order kA = Order::kKMajor>                                                 \
    static __device__ __forceinline__ void Run(float (&d)[kCount], std::uint64_t a,                \
                                               std::uint64_t b, bool accumulate) {                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n2 ", 0;\n"                               \
                   "wgmma.mma_async.sync.aligned.m64n" #kN "k16.f32." kType "." kType " "          \
                   MEGAFOLD_D##kCount##_NAMES                                                      \
                   "%" #n0 ", %" #n1 ", p, 1, 1, %" #n4 ", %" #n3 ";\n}\n"                         \
                   : MEGAFOLD_D##kCount                                                            \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),                            \
                     "n"(static_cast<int>(kB)), "n"(static_cast<int>(kA)));                        \
    }                                                                                              \
  };
MEGAFOLD_WGMMA(__nv_bfloat16, "bf16", 8, 4, 4, 5, 6, 7, 8, 9, 10)
MEGAFOLD_WGMMA(__nv_bfloat16, "bf16", 32, 16, 16, 17, 18, 19, 20, 21, 22)
MEGAFOLD_WGMMA(__nv_bfloat16, "bf16", 40, 20, 20, 21, 22, 23, 24, 25, 26)
MEGAFOLD_WGMMA(__nv_bfloat16, "bf16", 48, 24, 24, 25, 26, 27, 28, 29, 30)
MEGAFOLD_WGMMA(__nv_bfloat16, "bf16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
MEGAFOLD_WGMMA(__nv_bfloat16, "bf16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
MEGAFOLD_WGMMA(__half, "f16", 8, 4, 4, 5, 6, 7, 8, 9, 10)
MEGAFOLD_WGMMA(__half, "f16", 32, 16, 16, 17, 18, 19, 20, 21, 22)
MEGAFOLD_WGMMA(__half, "f16", 40, 20, 20, 21, 22, 23, 24, 25, 26)
MEGAFOLD_WGMMA(__half, "f16", 48, 24, 24, 25, 26, 27, 28, 29, 30)
MEGAFOLD_WGMMA(__half, "f16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
MEGAFOLD_WGMMA(__half, "f16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
#undef MEGAFOLD_WGMMA
#undef MEGAFOLD_D4
#undef MEGAFOLD_D4_NAMES
#undef MEGAFOLD_D64
#undef MEGAFOLD_D64_NAMES
#undef MEGAFOLD_D16
#undef MEGAFOLD_D16_NAMES
#undef MEGAFOLD_D20
#undef MEGAFOLD_D20_NAMES
#undef MEGAFOLD_D24
#undef MEGAFOLD_D24_NAMES
#undef MEGAFOLD_D32
#undef MEGAFOLD_D32_NAMES
#undef MEGAFOLD_D8
// clang-format on

// The A operand of the product over columns [16 step, 16 step + 16) of an accumulator.
template <typename T, int kCount>
__device__ __forceinline__ void ScoresAsA(std::uint32_t (&a)[4], const float (&d)[kCount],
                                          int step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = Pack(d[8 * step + 2 * i], d[8 * step + 2 * i + 1], T{});
}

}  // namespace megafold::cuda
