// Products and terms of score fragments: accumulators of a warp (device/mma.cuh), operands in
// shared memory or, for the side that a warp keeps, in registers.
#pragma once

#include "backends/cuda/device/mma.cuh"

namespace megafold::cuda {

// Pairs of neighbouring elements.
__device__ __forceinline__ float2 ToFloat2(__nv_bfloat162 x) { return __bfloat1622float2(x); }
__device__ __forceinline__ float2 ToFloat2(__half2 x) { return __half22float2(x); }
template <typename T>
struct PairOf;
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};
template <>
struct PairOf<__half> {
  using Type = __half2;
};

template <typename T>
__device__ __forceinline__ float2 ReadPair(const T* source) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float2*>(source);
  } else {
    return ToFloat2(*reinterpret_cast<const typename PairOf<T>::Type*>(source));
  }
}

template <typename T>
__device__ __forceinline__ void StorePair(T* to, float x, float y, bool aligned) {
  if constexpr (sizeof(T) == 4) {
    if (aligned) {
      *reinterpret_cast<float2*>(to) = make_float2(x, y);
    } else {
      to[0] = x;
      to[1] = y;
    }
  } else {
    const std::uint32_t bits = Pack(x, y, T{});
    if (aligned) {
      *reinterpret_cast<std::uint32_t*>(to) = bits;
    } else {
      reinterpret_cast<std::uint16_t*>(to)[0] = static_cast<std::uint16_t>(bits);
      reinterpret_cast<std::uint16_t*>(to)[1] = static_cast<std::uint16_t>(bits >> 16);
    }
  }
}

// Adds a term of the column to a fragment; `term` points at column 0.
template <int kMTiles, int kNTiles>
__device__ __forceinline__ void AddColumnTerm(float (&s)[kMTiles][kNTiles][4], const float* term) {
  const int lane = LaneId();
#pragma unroll
  for (int n = 0; n < kNTiles; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(term + n * 8 + (lane % 4) * 2);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      s[m][n][0] += pair.x;
      s[m][n][1] += pair.y;
      s[m][n][2] += pair.x;
      s[m][n][3] += pair.y;
    }
  }
}

// True in every lane when one of kCount terms is not zero.
template <int kCount>
__device__ __forceinline__ bool AnyTerm(const float* term) {
  bool any = false;
#pragma unroll
  for (int i = LaneId(); i < kCount; i += 32) any |= term[i] != 0.0F;
  return __any_sync(0xFFFFFFFFU, any) != 0;
}

// The A fragments of kMTiles * 16 rows of an operand.
template <typename T, int kMTiles, int kKTiles>
__device__ __forceinline__ void LoadStationary(typename Mma<T>::A (&a)[kMTiles][kKTiles],
                                               const T* base, std::int64_t stride, int rows,
                                               int columns, bool aligned) {
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int k = 0; k < kKTiles; ++k) {
      a[m][k] = Mma<T>::LoadAGlobal(base + m * 16 * stride + k * 16, stride, rows - m * 16,
                                    columns - k * 16, aligned);
    }
  }
}

// s += a B^T for B of kNTiles * 8 rows in shared memory (element (n, k) at tile[n * pitch + k]).
template <typename T, int kMTiles, int kKTiles, int kNTiles, int kPitch>
__device__ __forceinline__ void MultiplyByRows(float (&s)[kMTiles][kNTiles][4],
                                               const typename Mma<T>::A (&a)[kMTiles][kKTiles],
                                               const T* tile, bool allow_tf32 = false) {
#pragma unroll
  for (int k = 0; k < kKTiles; ++k) {
#pragma unroll
    for (int n = 0; n < kNTiles; n += 2) {
      typename Mma<T>::B b0, b1;
      Mma<T>::template LoadBByColumn<kPitch>(b0, b1, tile + n * 8 * kPitch + k * 16);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        Mma<T>::Run(s[m][n], a[m][k], b0, allow_tf32);
        Mma<T>::Run(s[m][n + 1], a[m][k], b1, allow_tf32);
      }
    }
  }
}

// s += A B^T with both in shared memory: A of kMTiles * 16 rows, B of kNTiles * 8.
template <typename T, int kDim, int kMTiles, int kNTiles, int kPitch>
__device__ __forceinline__ void MultiplyShared(float (&s)[kMTiles][kNTiles][4], const T* a_tile,
                                               const T* b_tile, bool allow_tf32 = false) {
#pragma unroll
  for (int depth = 0; depth < kDim; depth += 16) {
    typename Mma<T>::A a[kMTiles][1];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      a[m][0] = Mma<T>::template LoadA<kPitch>(a_tile + m * 16 * kPitch + depth);
    }
    MultiplyByRows<T, kMTiles, 1, kNTiles, kPitch>(s, a, b_tile + depth, allow_tf32);
  }
}

// c += a B for B of kKTiles * 16 rows in shared memory (element (k, n) at tile[k * pitch + n]) and
// kOTiles * 8 columns.
template <typename T, int kMTiles, int kKTiles, int kOTiles, int kPitch>
__device__ __forceinline__ void MultiplyByColumns(float (&c)[kMTiles][kOTiles][4],
                                                  const typename Mma<T>::A (&a)[kMTiles][kKTiles],
                                                  const T* tile, bool allow_tf32 = false) {
#pragma unroll
  for (int k = 0; k < kKTiles; ++k) {
#pragma unroll
    for (int n = 0; n < kOTiles; n += 2) {
      typename Mma<T>::B b0, b1;
      Mma<T>::template LoadBByRow<kPitch>(b0, b1, tile + k * 16 * kPitch + n * 8);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        Mma<T>::Run(c[m][n], a[m][k], b0, allow_tf32);
        Mma<T>::Run(c[m][n + 1], a[m][k], b1, allow_tf32);
      }
    }
  }
}

// The same for a score fragment of kNTiles * 8 columns.
template <typename T, int kMTiles, int kNTiles, int kOTiles, int kPitch>
__device__ __forceinline__ void MultiplyScores(float (&c)[kMTiles][kOTiles][4],
                                               const float (&p)[kMTiles][kNTiles][4], const T* tile,
                                               bool allow_tf32 = false) {
#pragma unroll
  for (int k = 0; k < kNTiles; k += 2) {
    typename Mma<T>::A a[kMTiles][1];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) a[m][0] = Mma<T>::FromAccumulators(p[m][k], p[m][k + 1]);
    MultiplyByColumns<T, kMTiles, 1, kOTiles, kPitch>(c, a, tile + k * 8 * kPitch, allow_tf32);
  }
}

}  // namespace megafold::cuda
