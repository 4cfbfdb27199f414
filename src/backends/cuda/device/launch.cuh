// Host side of a kernel launch: the dynamic shared memory it needs, and the error it may leave.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/guard.h"
#include "megafold/core/error.h"

namespace megafold::cuda {

// A device accepts more than 48 KiB of dynamic shared memory only after it has been asked to.
inline constexpr std::size_t kDefaultSharedBytes = 48 * 1024;

template <typename... Params>
void LaunchKernel(const char* name, void (*kernel)(Params...), std::int64_t blocks, int threads,
                  std::size_t shared_bytes, cudaStream_t stream, const Params&... params) {
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF)
    Fail(ErrorCode::kUnsupported, name, ": needs ", blocks, " thread blocks");
  if (shared_bytes > kDefaultSharedBytes) {
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              name);
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params...);
  CheckCuda(cudaGetLastError(), name);
}

}  // namespace megafold::cuda
