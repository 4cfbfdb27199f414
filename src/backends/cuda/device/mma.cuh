// Warp-level matrix products C[16,8] += A[16,16] B[16,8] with float32 accumulation, one interface
// for the three storage types.
//
// A lane (g = lane / 4, t = lane % 4) holds of C the elements (g, 2t), (g, 2t+1), (g+8, 2t),
// (g+8, 2t+1). FromAccumulators turns two neighbouring C fragments (16 columns) into an A fragment
// without a shuffle. float32 runs on the TF32 units as three products of split operands, which
// keeps float32's accuracy, or as one of rounded operands where the caller allows that; its A and B
// share a permutation of the contracted index that makes the same identity hold.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backends/cuda/device/ptx.cuh"

namespace megafold::cuda {

__device__ __forceinline__ int LaneId() { return static_cast<int>(threadIdx.x & 31U); }

__device__ __forceinline__ void MmaInstruction(float (&c)[4], const std::uint32_t (&a)[4],
                                               const std::uint32_t (&b)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void MmaInstruction(float (&c)[4], const std::uint32_t (&a)[4],
                                               const std::uint32_t (&b)[2], __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void MmaInstructionTf32(float (&c)[4], const std::uint32_t (&a)[4],
                                                   std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbouring elements of device memory, as bits. `aligned` says that the address allows one
// access of their joint size.
template <typename T>
__device__ __forceinline__ std::uint32_t LoadPair(const T* source, bool aligned) {
  if (aligned) return *reinterpret_cast<const std::uint32_t*>(source);
  const auto* halves = reinterpret_cast<const std::uint16_t*>(source);
  return halves[0] | (static_cast<std::uint32_t>(halves[1]) << 16);
}

// The 16-bit types.
template <typename T>
struct Mma {
  struct A {
    std::uint32_t r[4];
  };
  struct B {
    std::uint32_t r[2];
  };

  // A[16,16] from shared memory, element (m, k) at tile[m * pitch + k].
  template <int kPitch>
  static __device__ __forceinline__ A LoadA(const T* tile) {
    const int lane = LaneId();
    A a;
    LoadMatrix(a.r, SharedAddress(tile + (lane % 16) * kPitch + (lane / 16) * 8));
    return a;
  }

  // A[16,16] from shared memory, element (m, k) at tile[k * pitch + m].
  template <int kPitch>
  static __device__ __forceinline__ A LoadATransposed(const T* tile) {
    const int lane = LaneId();
    A a;
    LoadMatrixTransposed(
        a.r, SharedAddress(tile + ((lane & 7) + (lane / 16) * 8) * kPitch + (lane & 8)));
    return a;
  }

  // The same from device memory; rows at or past `rows` and columns at or past `columns` are zero.
  static __device__ __forceinline__ A LoadAGlobal(const T* tile, std::int64_t stride, int rows,
                                                  int columns, bool aligned) {
    const int lane = LaneId();
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i % 2) * 8;
      const int column = (lane % 4) * 2 + (i / 2) * 8;
      a.r[i] =
          row < rows && column < columns ? LoadPair(tile + row * stride + column, aligned) : 0U;
    }
    return a;
  }

  // B[16,16] as two fragments of 8 columns, element (k, n) at tile[n * pitch + k].
  template <int kPitch>
  static __device__ __forceinline__ void LoadBByColumn(B& b0, B& b1, const T* tile) {
    const int lane = LaneId();
    std::uint32_t r[4];
    LoadMatrix(r, SharedAddress(tile + ((lane & 7) + (lane / 16) * 8) * kPitch + (lane & 8)));
    b0 = {{r[0], r[1]}};
    b1 = {{r[2], r[3]}};
  }

  // B[16,16] as two fragments of 8 columns, element (k, n) at tile[k * pitch + n].
  template <int kPitch>
  static __device__ __forceinline__ void LoadBByRow(B& b0, B& b1, const T* tile) {
    const int lane = LaneId();
    std::uint32_t r[4];
    LoadMatrixTransposed(r, SharedAddress(tile + (lane % 16) * kPitch + (lane / 16) * 8));
    b0 = {{r[0], r[1]}};
    b1 = {{r[2], r[3]}};
  }

  static __device__ __forceinline__ A FromAccumulators(const float (&c0)[4], const float (&c1)[4]) {
    return {{Pack(c0[0], c0[1], T{}), Pack(c0[2], c0[3], T{}), Pack(c1[0], c1[1], T{}),
             Pack(c1[2], c1[3], T{})}};
  }

  static __device__ __forceinline__ void Run(float (&c)[4], const A& a, const B& b,
                                             bool /*allow_tf32*/ = false) {
    MmaInstruction(c, a.r, b.r, T{});
  }
};

// float32: slot t of a k8 step is column 2t, slot t + 4 is column 2t + 1.
template <>
struct Mma<float> {
  struct A {
    float r[8];
  };
  struct B {
    float r[4];
  };

  template <int kPitch>
  static __device__ __forceinline__ A LoadA(const float* tile) {
    const int lane = LaneId();
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* source = tile + (lane / 4 + (i % 2) * 8) * kPitch + (i / 2) * 8 + (lane % 4) * 2;
      const float2 pair = *reinterpret_cast<const float2*>(source);
      a.r[(i / 2) * 4 + i % 2] = pair.x;
      a.r[(i / 2) * 4 + i % 2 + 2] = pair.y;
    }
    return a;
  }

  static __device__ __forceinline__ A LoadAGlobal(const float* tile, std::int64_t stride, int rows,
                                                  int columns, bool /*aligned*/) {
    const int lane = LaneId();
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i % 2) * 8;
      const int column = (lane % 4) * 2 + (i / 2) * 8;
      const bool inside = row < rows && column < columns;
      const float* source = tile + row * stride + column;
      a.r[(i / 2) * 4 + i % 2] = inside ? source[0] : 0.0F;
      a.r[(i / 2) * 4 + i % 2 + 2] = inside ? source[1] : 0.0F;
    }
    return a;
  }

  template <int kPitch>
  static __device__ __forceinline__ void LoadBByColumn(B& b0, B& b1, const float* tile) {
    const int lane = LaneId();
    const float* source = tile + (lane / 4) * kPitch + (lane % 4) * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 first = *reinterpret_cast<const float2*>(source + half * 8);
      const float2 second = *reinterpret_cast<const float2*>(source + 8 * kPitch + half * 8);
      b0.r[half * 2] = first.x;
      b0.r[half * 2 + 1] = first.y;
      b1.r[half * 2] = second.x;
      b1.r[half * 2 + 1] = second.y;
    }
  }

  template <int kPitch>
  static __device__ __forceinline__ void LoadBByRow(B& b0, B& b1, const float* tile) {
    const int lane = LaneId();
    const float* source = tile + (lane % 4) * 2 * kPitch + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* row = source + ((i / 2) * 8 + i % 2) * kPitch;
      b0.r[i] = row[0];
      b1.r[i] = row[8];
    }
  }

  static __device__ __forceinline__ A FromAccumulators(const float (&c0)[4], const float (&c1)[4]) {
    return {{c0[0], c0[2], c0[1], c0[3], c1[0], c1[2], c1[1], c1[3]}};
  }

  // The nearest TF32 number.
  static __device__ __forceinline__ std::uint32_t Round(float x) {
    std::uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
  }

  // x = high + low up to 2^-22 |x|, both TF32 numbers.
  static __device__ __forceinline__ void Split(float x, std::uint32_t& high, std::uint32_t& low) {
    high = Round(x);
    low = Round(x - __uint_as_float(high));
  }

  // The matrix unit truncates when it adds, so it only sums the products of one step of the
  // contraction. `allow_tf32` is the same for all threads.
  static __device__ __forceinline__ void Run(float (&c)[4], const A& a, const B& b,
                                             bool allow_tf32 = false) {
    if (allow_tf32) {
      RunRounded(c, a, b);
      return;
    }
    float sum[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) Split(a.r[half * 4 + i], a_high[i], a_low[i]);
#pragma unroll
      for (int i = 0; i < 2; ++i) Split(b.r[half * 2 + i], b_high[i], b_low[i]);
      MmaInstructionTf32(sum, a_low, b_high[0], b_high[1]);
      MmaInstructionTf32(sum, a_high, b_low[0], b_low[1]);
      MmaInstructionTf32(sum, a_high, b_high[0], b_high[1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += sum[i];
  }

 private:
  static __device__ __forceinline__ void RunRounded(float (&c)[4], const A& a, const B& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t rounded[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) rounded[i] = Round(a.r[half * 4 + i]);
      MmaInstructionTf32(c, rounded, Round(b.r[half * 2]), Round(b.r[half * 2 + 1]));
    }
  }
};

}  // namespace megafold::cuda
