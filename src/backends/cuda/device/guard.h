// CUDA runtime errors as megafold::Error, what a device is, and the current one as a scope.
#pragma once

#include <cuda_runtime.h>

#include "megafold/core/error.h"

namespace megafold::cuda {

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    Fail(ErrorCode::kDevice, what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  }
}

inline int DeviceAttribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  CheckCuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Bytes of shared memory that a block may have.
inline int SharedLimit(int device) {
  return DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Whether a device is of compute capability 9.0, whose instructions code for sm_90a has.
inline bool IsHopper(int device) {
  return DeviceAttribute(cudaDevAttrComputeCapabilityMajor, device) == 9 &&
         DeviceAttribute(cudaDevAttrComputeCapabilityMinor, device) == 0;
}

// Makes `index` the thread's current device for the object's lifetime. Sets it even where it is the
// current one: that also makes its context the thread's, which a thread that has not yet called the
// runtime (autograd's) lacks and the driver's functions need.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    CheckCuda(cudaGetDevice(&previous_), "cudaGetDevice");
    CheckCuda(cudaSetDevice(index), "cudaSetDevice");
    changed_ = index != previous_;
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
