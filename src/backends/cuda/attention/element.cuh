// The C++ type of a storage type in CUDA kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "megafold/core/dtype.h"

namespace megafold::cuda {

template <DType kType>
struct ElementOf;
template <>
struct ElementOf<DType::kFloat32> {
  using Type = float;
};
template <>
struct ElementOf<DType::kBFloat16> {
  using Type = __nv_bfloat16;
};
template <>
struct ElementOf<DType::kFloat16> {
  using Type = __half;
};

}  // namespace megafold::cuda
