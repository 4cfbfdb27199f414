// Copies of tiles from device memory to shared memory, by all threads of a block together.
//
// Rows and columns outside the operand become zero. Operands whose vectors lie on 16 bytes go by
// asynchronous 16-byte copies; others element by element, slower and just as right.
#pragma once

#include <cstdint>

#include "backends/cuda/device/ptx.cuh"

namespace megafold::cuda {

// A row of a tile in shared memory is 16 bytes longer than its content, so that eight consecutive rows
// start in different banks.
template <typename T, int kColumns>
inline constexpr int kTilePitch = kColumns + 16 / static_cast<int>(sizeof(T));

// kRows x kColumns elements; `rows` and `columns` of them are inside the operand.
template <typename T, int kRows, int kColumns, int kThreads>
__device__ __forceinline__ void LoadTile(T* tile, const T* source, std::int64_t stride, int rows,
                                         int columns, bool aligned) {
  constexpr int kPitch = kTilePitch<T, kColumns>;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kVectors = kColumns / kVector;
  if (aligned) {
    const std::uint32_t base = SharedAddress(tile);
#pragma unroll
    for (int i = 0; i < (kRows * kVectors + kThreads - 1) / kThreads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      if (kRows * kVectors % kThreads != 0 && index >= kRows * kVectors) break;
      const int row = index / kVectors;
      const int column = index % kVectors * kVector;
      const bool inside = row < rows && column < columns;
      const T* from = inside ? source + row * stride + column : source;
      CopyAsync16(base + (row * kPitch + column) * sizeof(T), from, inside ? 16 : 0);
    }
    return;
  }
  for (int index = static_cast<int>(threadIdx.x); index < kRows * kColumns; index += kThreads) {
    const int row = index / kColumns;
    const int column = index % kColumns;
    T value = T(0.0F);
    if (row < rows && column < columns) value = source[row * stride + column];
    tile[row * kPitch + column] = value;
  }
}

// kRows x kColumns elements of kBytes bytes, rows kPitch elements apart in shared memory.
template <int kBytes, int kRows, int kColumns, int kPitch, int kThreads>
__device__ __forceinline__ void LoadTerm(void* tile, const void* source, std::int64_t row_stride,
                                         std::int64_t column_stride, int rows, int columns,
                                         bool aligned) {
  const char* from = static_cast<const char*>(source);
  const std::uint32_t base = SharedAddress(tile);
  if (aligned) {
    constexpr int kVector = 16 / kBytes;
    constexpr int kVectors = kColumns / kVector;
#pragma unroll
    for (int i = 0; i < (kRows * kVectors + kThreads - 1) / kThreads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      if (kRows * kVectors % kThreads != 0 && index >= kRows * kVectors) break;
      const int row = index / kVectors;
      const int column = index % kVectors * kVector;
      const int valid = row < rows ? max(0, min(16, (columns - column) * kBytes)) : 0;
      const char* vector = valid > 0 ? from + (row * row_stride + column) * kBytes : from;
      CopyAsync16(base + (row * kPitch + column) * kBytes, vector, valid);
    }
    return;
  }
  for (int index = static_cast<int>(threadIdx.x); index < kRows * kColumns; index += kThreads) {
    const int row = index / kColumns;
    const int column = index % kColumns;
    const bool inside = row < rows && column < columns;
    const char* element =
        inside ? from + (row * row_stride + column * column_stride) * kBytes : from;
    if constexpr (kBytes == 4) {
      CopyAsync4(base + (row * kPitch + column) * 4, element, inside ? 4 : 0);
    } else {
      auto* to = static_cast<std::uint16_t*>(tile) + row * kPitch + column;
      *to = inside ? *reinterpret_cast<const std::uint16_t*>(element) : std::uint16_t{0};
    }
  }
}

}  // namespace megafold::cuda
