// Where a run computes, through PyTorch's device-generic interfaces.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace megafold::train {

// "auto", "cpu", "cuda" or "cuda:1" as a device that exists here. Throws kInvalidArgument that says
// what is there.
at::Device PickDevice(const std::string& name);

// The devices PyTorch can use here, for people: "cpu", "cpu, 2 x cuda".
std::string AvailableDevices();

// Threads of PyTorch and of the fused CPU operators; 0 leaves PyTorch's number and gives it to the
// operators.
void SetThreads(int threads);

// Lets the C allocator keep freed memory instead of giving every large block back to the system:
// the same sizes come again each step, and the page faults of fresh memory can cost as much as the
// arithmetic. For runs on the CPU; does nothing where the C library is not glibc.
void KeepFreedMemory();

// Highest resident memory of this process so far, in bytes.
std::int64_t PeakHostMemory();
// Highest memory that PyTorch's allocator held on an accelerator, in bytes.
std::int64_t PeakDeviceMemory(const at::Device& device);

}  // namespace megafold::train
