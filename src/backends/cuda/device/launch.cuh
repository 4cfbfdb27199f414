// Host side of a kernel launch: the dynamic shared memory it needs, and the error it may leave.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/guard.h"
#include "megafold/core/error.h"

namespace megafold::cuda {

// A device accepts more than 48 KiB of dynamic shared memory only after it has been asked to.
inline constexpr std::size_t kDefaultSharedBytes = 48 * 1024;

// `cluster` blocks that follow one another form a cluster (sm_90); it divides `blocks`.
template <typename... Params>
void LaunchClusters(const char* name, void (*kernel)(Params...), std::int64_t blocks, int cluster,
                    int threads, std::size_t shared_bytes, cudaStream_t stream,
                    const Params&... params) {
  if (blocks == 0) return;
  if (blocks > 0x7FFFFFFF)
    Fail(ErrorCode::kUnsupported, name, ": needs ", blocks, " thread blocks");
  if (shared_bytes > kDefaultSharedBytes) {
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, params...), name);
}

template <typename... Params>
void LaunchKernel(const char* name, void (*kernel)(Params...), std::int64_t blocks, int threads,
                  std::size_t shared_bytes, cudaStream_t stream, const Params&... params) {
  LaunchClusters(name, kernel, blocks, 1, threads, shared_bytes, stream, params...);
}

}  // namespace megafold::cuda
