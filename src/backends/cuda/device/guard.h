// CUDA runtime errors as megafold::Error, and the current device as a scope.
#pragma once

#include <cuda_runtime.h>

#include "megafold/core/error.h"

namespace megafold::cuda {

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    Fail(ErrorCode::kDevice, what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  }
}

// Makes `index` the thread's current device for the object's lifetime.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    CheckCuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (index != previous_) {
      CheckCuda(cudaSetDevice(index), "cudaSetDevice");
      changed_ = true;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace megafold::cuda
