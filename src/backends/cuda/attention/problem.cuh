// Where a kernel finds the parts of an EvoAttention problem: a row's operands, its mask, its bias.
#pragma once

#include <cstdint>

#include "backends/cuda/attention/problem.h"

namespace megafold::cuda {

inline constexpr float kLog2E = 1.44269504088896340736F;
inline constexpr float kInfinity = __builtin_huge_valf();

// Row `row` of a group as a (batch, row of the batch) pair.
struct RowIndex {
  std::int64_t batch, row;
  __device__ RowIndex(std::int64_t batch_index, std::int64_t row_index)
      : batch(batch_index), row(row_index) {}
  __device__ RowIndex(const AttentionProblem& p, std::int64_t group, std::int64_t index) {
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
__device__ __forceinline__ T* RowBase(const AttentionOperand& operand, const RowIndex& at,
                                      int head) {
  return static_cast<T*>(operand.data) + at.batch * operand.batch + at.row * operand.row +
         head * operand.head;
}

__device__ __forceinline__ std::int64_t MaskBase(const AttentionProblem& p, const RowIndex& at) {
  return at.batch * p.mask.batch + at.row * p.mask.row;
}

// Offset of query 0 in lse and delta.
__device__ __forceinline__ std::int64_t StatisticBase(const AttentionProblem& p, const RowIndex& at,
                                                      int head) {
  return ((at.batch * p.batch_rows + at.row) * p.heads + head) * p.queries;
}

// The bits of the mask's term of `key`, which is inside; `row` is where the row's mask begins.
template <typename T>
__device__ __forceinline__ std::uint32_t MaskBits(const AttentionProblem& p, std::int64_t row,
                                                  int key) {
  const std::int64_t offset = row + key * p.mask.key;
  switch (p.mask.kind) {
    case TermKind::kNone:
      break;
    case TermKind::kBool:
      return static_cast<const std::uint8_t*>(p.mask.data)[offset];
    case TermKind::kFloat32:
      return static_cast<const std::uint32_t*>(p.mask.data)[offset];
    case TermKind::kStorage:
      if constexpr (sizeof(T) == 2) return static_cast<const std::uint16_t*>(p.mask.data)[offset];
      break;
  }
  return 0;
}

// What a mask adds is no lower than this, or -inf. Models write -1e9 or the lowest number for -inf;
// beside that float32 keeps nothing of a score, and 2^(x - maximum) would be off by its rounding.
inline constexpr float kLowestTerm = -1e6F;

// What a mask of these bits adds to the scores.
template <typename T>
__device__ __forceinline__ float MaskValue(TermKind kind, std::uint32_t bits) {
  if (kind == TermKind::kBool) return bits != 0 ? 0.0F : -kInfinity;
  float term = __uint_as_float(bits);
  if constexpr (sizeof(T) == 2) {
    const auto half = static_cast<std::uint16_t>(bits);
    if (kind == TermKind::kStorage) term = static_cast<float>(*reinterpret_cast<const T*>(&half));
  }
  return term == -kInfinity ? term : fmaxf(term, kLowestTerm);
}

// What the mask adds to the scores of `key`; -inf past the last key.
template <typename T>
__device__ __forceinline__ float MaskTerm(const AttentionProblem& p, std::int64_t row, int key) {
  return key < p.keys ? MaskValue<T>(p.mask.kind, MaskBits<T>(p, row, key)) : -kInfinity;
}

// The bias at an offset in elements.
template <typename T>
__device__ __forceinline__ float BiasTerm(const AttentionProblem& p, std::int64_t offset) {
  if (p.bias.kind == TermKind::kNone) return 0.0F;
  if (p.bias.kind == TermKind::kFloat32) return static_cast<const float*>(p.bias.data)[offset];
  return static_cast<float>(static_cast<const T*>(p.bias.data)[offset]);
}

}  // namespace megafold::cuda
