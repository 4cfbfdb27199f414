// Host side of a kernel launch: the dynamic shared memory it needs, and the error it may leave.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/guard.h"
#include "megafold/core/error.h"

namespace megafold::cuda {

// A device accepts more than 48 KiB of dynamic shared memory only after it has been asked to.
inline constexpr std::size_t kDefaultSharedBytes = 48 * 1024;

// How a kernel is launched. `cluster` blocks that follow one another form a cluster (sm_90); it
// divides `blocks`. `early`: it may begin before the kernel that was queued before it has ended,
// and waits itself for what it needs (sm_90).
struct LaunchShape {
  std::int64_t blocks;
  int threads;
  std::size_t shared_bytes = 0;
  int cluster = 1;
  bool early = false;
  std::int64_t columns = 1, layers = 1;  // of the grid: its second and third dimension
};

template <typename... Params>
void Launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape,
            cudaStream_t stream, const Params&... params) {
  if (shape.blocks == 0) return;
  if (shape.blocks > 0x7FFFFFFF || std::max(shape.columns, shape.layers) > 0xFFFF) {
    Fail(ErrorCode::kUnsupported, name, ": needs ", shape.blocks, " x ", shape.columns, " x ",
         shape.layers, " thread blocks");
  }
  if (shape.shared_bytes > kDefaultSharedBytes) {
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shape.shared_bytes)),
              name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.columns),
                        static_cast<unsigned>(shape.layers));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  if (shape.early) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  CheckCuda(cudaLaunchKernelEx(&config, kernel, params...), name);
}

template <typename... Params>
void LaunchKernel(const char* name, void (*kernel)(Params...), std::int64_t blocks, int threads,
                  std::size_t shared_bytes, cudaStream_t stream, const Params&... params) {
  Launch(name, kernel, {blocks, threads, shared_bytes}, stream, params...);
}

// The kernels of one call, which may overlap: the first begins when all that was queued on the
// stream has ended, each other one early.
class LaunchChain {
 public:
  explicit LaunchChain(cudaStream_t stream) : stream_(stream) {}
  template <typename... Params>
  void Add(const char* name, void (*kernel)(Params...), LaunchShape shape,
           const Params&... params) {
    if (shape.blocks == 0) return;
    shape.early = begun_;
    Launch(name, kernel, shape, stream_, params...);
    begun_ = true;
  }

 private:
  cudaStream_t stream_;
  bool begun_ = false;
};

}  // namespace megafold::cuda
