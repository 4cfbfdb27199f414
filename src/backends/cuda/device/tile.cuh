// Copies of tiles from device memory to shared memory, by a fixed set of threads together.
//
// Rows and columns outside the operand become zero. Operands whose vectors lie on 16 bytes go by
// asynchronous 16-byte copies whose addresses a thread works out once; others element by element,
// slower and just as right.
#pragma once

#include <cstdint>
#include <type_traits>

#include "backends/cuda/device/ptx.cuh"

namespace megafold::cuda {

// A row of a tile in shared memory is 16 bytes longer than its content, so that eight consecutive
// rows start in different banks.
template <typename T, int kColumns>
inline constexpr int kTilePitch = kColumns + 16 / static_cast<int>(sizeof(T));

// Out of line: the rare path must not cost the common one its registers and instruction cache.
template <int kBytes>
__device__ __noinline__ void LoadElements(void* tile, int pitch, int tile_rows, int tile_columns,
                                          const void* source, std::int64_t row_stride,
                                          std::int64_t column_stride, int rows, int columns,
                                          int thread, int threads) {
  using Bits = std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>;
  constexpr int kBatch = 4;  // elements of a thread that are on their way together
  const auto* from = static_cast<const Bits*>(source);
  auto* to = static_cast<Bits*>(tile);
  for (int start = thread; start < tile_rows * tile_columns; start += kBatch * threads) {
    Bits bits[kBatch];
    int place[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = (start + i * threads) / tile_columns;
      const int column = (start + i * threads) % tile_columns;
      place[i] = row < tile_rows ? row * pitch + column : -1;
      bits[i] = 0;
      if (row < min(rows, tile_rows) && column < columns) {
        bits[i] = __ldg(from + row * row_stride + column * column_stride);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (place[i] >= 0) to[place[i]] = bits[i];
    }
  }
}

// The same for 4 bytes, which arrive as the thread's other asynchronous copies do.
inline __device__ __noinline__ void CopyWords(void* tile, int pitch, int tile_rows,
                                              int tile_columns, const void* source,
                                              std::int64_t row_stride, std::int64_t column_stride,
                                              int rows, int columns, int thread, int threads) {
  const auto* from = static_cast<const std::uint32_t*>(source);
  const std::uint32_t to = SharedAddress(tile);
  for (int index = thread; index < tile_rows * tile_columns; index += threads) {
    const int row = index / tile_columns;
    const int column = index % tile_columns;
    const bool inside = row < rows && column < columns;
    CopyAsync4(to + (row * pitch + column) * 4,
               inside ? from + row * row_stride + column * column_stride : from, inside ? 4 : 0);
  }
}

// Element by element, by whichever of the two is quicker: all is there once the asynchronous copies
// are.
template <int kBytes, typename... Args>
__device__ __forceinline__ void CopyElements(Args... args) {
  if constexpr (kBytes == 4) {
    CopyWords(args...);
  } else {
    LoadElements<kBytes>(args...);
  }
}

// Which vectors of a tile a thread copies: every kRowsPerPass-th row of one column of vectors.
struct VectorPosition {
  const char* source;
  int row, column, offset;  // of its first vector: in the tile, and in bytes in shared memory

  __device__ __forceinline__ VectorPosition(const void* tile, std::int64_t stride, int vectors,
                                            int vector, int pitch, int bytes, int thread)
      : row(thread / vectors), column(thread % vectors * vector) {
    source = static_cast<const char*>(tile) + (row * stride + column) * bytes;
    offset = (row * pitch + column) * bytes;
  }
  // The tile's first element.
  __device__ __forceinline__ const void* Tile(std::int64_t stride, int bytes) const {
    return source - (row * stride + column) * bytes;
  }
};

// kRows x kColumns elements of kBytes bytes, rows kPitch elements apart in shared memory; `rows`
// and `columns` of them are inside the operand.
template <int kBytes, int kRows, int kColumns, int kPitch, int kThreads>
struct VectorLoads {
  static constexpr int kVector = 16 / kBytes;
  static constexpr int kVectors = kColumns / kVector;
  static constexpr int kRowsPerPass = kThreads / kVectors;
  static constexpr int kPasses = (kRows + kRowsPerPass - 1) / kRowsPerPass;

  static __device__ __forceinline__ VectorPosition Position(const void* source, std::int64_t stride,
                                                            int thread) {
    return VectorPosition(source, stride, kVectors, kVector, kPitch, kBytes, thread);
  }
  static __device__ __forceinline__ void Run(const VectorPosition& at, std::uint32_t tile,
                                             std::int64_t stride, int rows, int columns) {
    if (kThreads % kVectors != 0 && at.row >= kRowsPerPass) return;
    const int valid = max(0, min(16, (columns - at.column) * kBytes));
    const char* from = at.source;
    const std::int64_t step = stride * (kRowsPerPass * kBytes);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = at.row + pass * kRowsPerPass;
      if (kRows % kRowsPerPass != 0 && row >= kRows) break;
      CopyAsync16(tile + at.offset + pass * kRowsPerPass * kPitch * kBytes, from,
                  row < rows ? valid : 0);
      from += step;
    }
  }
};

// Tiles of kRows vectors of kDim elements, anywhere in an operand.
template <typename T, int kRows, int kDim, int kThreads>
class TileLoader {
 public:
  __device__ __forceinline__ TileLoader(const T* source, std::int64_t stride, int thread)
      : at_(Loads::Position(source, stride, thread)) {}
  __device__ __forceinline__ void Advance(std::int64_t elements) {
    at_.source += elements * static_cast<int>(sizeof(T));
  }
  __device__ __forceinline__ void Load(T* tile, std::int64_t stride, int rows, int dim,
                                       bool aligned, int thread) const {
    if (aligned) {
      Loads::Run(at_, SharedAddress(tile), stride, rows, dim);
    } else {
      CopyElements<sizeof(T)>(tile, kTilePitch<T, kDim>, kRows, kDim, at_.Tile(stride, sizeof(T)),
                              stride, 1, rows, dim, thread, kThreads);
    }
  }

 private:
  using Loads = VectorLoads<sizeof(T), kRows, kDim, kTilePitch<T, kDim>, kThreads>;
  VectorPosition at_;
};

}  // namespace megafold::cuda
