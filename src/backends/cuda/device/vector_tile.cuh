// Tiles of vectors in shared memory, as tensor copies with a swizzle write them and the matrix
// units read them (device/wgmma.cuh): a vector is a row of kPitch bytes or, of strips of 64 rows
// that follow one another, a row of each.
#pragma once

#include "backends/cuda/device/wgmma.cuh"

namespace megafold::cuda {

// The address of this lane's 16 bytes of the 16 vectors from `first` on and the 16 columns from
// 8 chunk on, for LoadMatrix and StoreMatrix.
template <int kPitch>
__device__ __forceinline__ std::uint32_t VectorAddress(std::uint32_t tile, int first, int chunk) {
  constexpr int kChunks = kPitch / 16;  // in a row
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = first + lane % 16;
  const int swizzle = row / (8 / kChunks) % kChunks;
  return tile + chunk / kChunks * TileDescriptor<kPitch>::kStripBytes + row * kPitch +
         static_cast<std::uint32_t>((chunk % kChunks + lane / 16) ^ swizzle) * 16;
}
// The same of the warp's 16 of its warpgroup's 64 vectors.
template <int kPitch>
__device__ __forceinline__ std::uint32_t VectorAddress(std::uint32_t tile, int chunk) {
  return VectorAddress<kPitch>(tile, static_cast<int>(threadIdx.x % 128 / 32) * 16, chunk);
}

// Writes an accumulator as 64 vectors of kDim, times a factor for each of a thread's two rows. It
// may have more columns.
template <typename T, int kDim, int kPitch, int kValues>
__device__ __forceinline__ void WriteVectors(std::uint32_t tile, const float (&c)[kValues],
                                             float top, float bottom) {
  static_assert(kValues >= kDim / 2);
#pragma unroll
  for (int chunk = 0; chunk < kDim / 8; chunk += 2) {
    const int at = 4 * chunk;
    StoreMatrix(VectorAddress<kPitch>(tile, chunk), Pack(c[at] * top, c[at + 1] * top, T{}),
                Pack(c[at + 2] * bottom, c[at + 3] * bottom, T{}),
                Pack(c[at + 4] * top, c[at + 5] * top, T{}),
                Pack(c[at + 6] * bottom, c[at + 7] * bottom, T{}));
  }
}

// s (+)= A B^T for 64 vectors of A and as many of B as s has columns; queued.
template <typename T, int kDim, int kPitch, int kCount>
__device__ __forceinline__ void MultiplyVectors(float (&s)[kCount], std::uint32_t a,
                                                std::uint32_t b, bool accumulate) {
  using Descriptor = TileDescriptor<kPitch>;
  const std::uint32_t left = Descriptor::Low(a);
  const std::uint32_t right = Descriptor::Low(b);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    Wgmma<T, 2 * kCount>::template Run<Order::kKMajor>(
        s, Descriptor::FromLow(left + k * Descriptor::kStepKMajor),
        Descriptor::FromLow(right + k * Descriptor::kStepKMajor), accumulate || k > 0);
  }
}

}  // namespace megafold::cuda
