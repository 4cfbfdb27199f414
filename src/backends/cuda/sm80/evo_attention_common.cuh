// What the portable EvoAttention kernels share: where a row's operands start, the mask and bias terms
// in shared memory, and stores of accumulators.
//
// Scores are x = scale <q, k> + bias + mask in natural units; p = 2^(x log2(e) - m log2(e)).
#pragma once

#include <cfloat>
#include <cstdint>

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/sm80/evo_attention_params.h"

namespace megafold::cuda {

inline constexpr float kLog2E = 1.44269504088896340736F;
inline constexpr float kInfinity = __builtin_huge_valf();

// Row `row` of a group as a (batch, row of the batch) pair.
struct RowIndex {
  std::int64_t batch, row;
  __device__ RowIndex(const AttentionParams& p, std::int64_t group, std::int64_t index) {
    if (p.rows == p.batch_rows) {
      batch = group;
      row = index;
    } else {
      batch = index / p.batch_rows;
      row = index - batch * p.batch_rows;
    }
  }
};

template <typename T>
__device__ __forceinline__ T* RowBase(const AttentionOperand& operand, const RowIndex& at, int head) {
  return static_cast<T*>(operand.data) + at.batch * operand.batch + at.row * operand.row +
         head * operand.head;
}

// Offset of query 0 in lse and delta.
__device__ __forceinline__ std::int64_t StatisticBase(const AttentionParams& p, const RowIndex& at,
                                                      int head) {
  return ((at.batch * p.batch_rows + at.row) * p.heads + head) * p.queries;
}

// What the mask adds to the scores of `key`; -inf past the last key.
template <typename T>
__device__ __forceinline__ float MaskTerm(const AttentionParams& p, const RowIndex& at, int key) {
  if (key >= p.keys) return -kInfinity;
  const std::int64_t offset = at.batch * p.mask.batch + at.row * p.mask.row + key * p.mask.key;
  switch (p.mask.kind) {
    case TermKind::kNone: return 0.0F;
    case TermKind::kBool: return static_cast<const bool*>(p.mask.data)[offset] ? 0.0F : -kInfinity;
    case TermKind::kFloat32: return static_cast<const float*>(p.mask.data)[offset];
    case TermKind::kStorage:
      return static_cast<float>(static_cast<const T*>(p.mask.data)[offset]);
  }
  return 0.0F;
}

// A tile of bias, rows are queries, in the type that it has in memory.
template <typename T, int kQueries, int kKeys, int kPitch, int kThreads>
__device__ __forceinline__ void LoadBias(void* tile, const AttentionParams& p, std::int64_t group,
                                         int head, int query, int key) {
  const AttentionBias& bias = p.bias;
  const std::int64_t offset = group * bias.group + head * bias.head + query * bias.query +
                              static_cast<std::int64_t>(key) * bias.key;
  if (bias.kind == TermKind::kFloat32) {
    LoadTerm<4, kQueries, kKeys, kPitch, kThreads>(
        tile, static_cast<const float*>(bias.data) + offset, bias.query, bias.key,
        p.queries - query, p.keys - key, bias.aligned);
  } else if (bias.kind == TermKind::kStorage) {
    LoadTerm<static_cast<int>(sizeof(T)), kQueries, kKeys, kPitch, kThreads>(
        tile, static_cast<const T*>(bias.data) + offset, bias.query, bias.key, p.queries - query,
        p.keys - key, bias.aligned);
  }
}

__host__ __device__ inline int BiasBytes(const AttentionParams& p, int storage_bytes) {
  return p.bias.kind == TermKind::kNone ? 0 : p.bias.kind == TermKind::kFloat32 ? 4 : storage_bytes;
}

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

// x = scale * s + bias for a fragment whose rows are queries; `tile` points at row 0, column 0 of the
// warp's part of the bias tile.
template <typename T, int kMTiles, int kNTiles, int kPitch>
__device__ __forceinline__ void ApplyBias(float (&s)[kMTiles][kNTiles][4], const void* tile,
                                          int offset, TermKind kind, float scale) {
  const int lane = LaneId();
  const int at = offset + (lane / 4) * kPitch + (lane % 4) * 2;
  auto apply = [&]<typename Element>(const Element* source) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const float2 top = ReadPair(source + m * 16 * kPitch + n * 8);
        const float2 bottom = ReadPair(source + (m * 16 + 8) * kPitch + n * 8);
        s[m][n][0] = fmaf(s[m][n][0], scale, top.x);
        s[m][n][1] = fmaf(s[m][n][1], scale, top.y);
        s[m][n][2] = fmaf(s[m][n][2], scale, bottom.x);
        s[m][n][3] = fmaf(s[m][n][3], scale, bottom.y);
      }
    }
  };
  if (kind == TermKind::kFloat32) {
    apply(static_cast<const float*>(tile) + at);
  } else if (kind == TermKind::kStorage) {
    apply(static_cast<const T*>(tile) + at);
  } else {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] *= scale;
      }
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

// Stores accumulators times a factor for each of a lane's rows (m * 16 + lane / 4 and that + 8).
template <typename T, int kMTiles, int kNTiles>
__device__ __forceinline__ void StoreRows(T* to, std::int64_t stride, bool aligned, int rows,
                                          int columns, const float (&c)[kMTiles][kNTiles][4],
                                          const float (&factor)[kMTiles][2]) {
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m * 16 + half * 8 + lane / 4;
      if (row >= rows) continue;
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const int column = n * 8 + (lane % 4) * 2;
        if (column >= columns) continue;
        StorePair(to + row * stride + column, c[m][n][half * 2] * factor[m][half],
                  c[m][n][half * 2 + 1] * factor[m][half], aligned);
      }
    }
  }
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
                                               const T* tile) {
#pragma unroll
  for (int k = 0; k < kKTiles; ++k) {
#pragma unroll
    for (int n = 0; n < kNTiles; n += 2) {
      typename Mma<T>::B b0, b1;
      Mma<T>::template LoadBByColumn<kPitch>(b0, b1, tile + n * 8 * kPitch + k * 16);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        Mma<T>::Run(s[m][n], a[m][k], b0);
        Mma<T>::Run(s[m][n + 1], a[m][k], b1);
      }
    }
  }
}

// c += p B for B of kNTiles * 8 rows in shared memory and kOTiles * 8 columns; p is a score fragment.
template <typename T, int kMTiles, int kNTiles, int kOTiles, int kPitch>
__device__ __forceinline__ void MultiplyScores(float (&c)[kMTiles][kOTiles][4],
                                               const float (&p)[kMTiles][kNTiles][4],
                                               const T* tile) {
#pragma unroll
  for (int k = 0; k < kNTiles; k += 2) {
    typename Mma<T>::A a[kMTiles];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) a[m] = Mma<T>::FromAccumulators(p[m][k], p[m][k + 1]);
#pragma unroll
    for (int n = 0; n < kOTiles; n += 2) {
      typename Mma<T>::B b0, b1;
      Mma<T>::template LoadBByRow<kPitch>(b0, b1, tile + k * 8 * kPitch + n * 8);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        Mma<T>::Run(c[m][n], a[m], b0);
        Mma<T>::Run(c[m][n + 1], a[m], b1);
      }
    }
  }
}

}  // namespace megafold::cuda
