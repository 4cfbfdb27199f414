#include "backends/cuda/sm90/tensor_map.h"

#include <array>

#include "backends/cuda/device/guard.h"

namespace megafold::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;
constexpr std::int64_t kMaxStrideBytes = std::int64_t{1} << 40;

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found through the runtime: the library does not link to the driver.
Encode FindEncode() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                               cudaEnableDefault, &result),
              "cuTensorMapEncodeTiled");
    Require(result == cudaDriverEntryPointSuccess && function != nullptr,
            "the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

CUtensorMapSwizzle SwizzleOver(std::size_t row_bytes) {
  if (row_bytes == 32) return CU_TENSOR_MAP_SWIZZLE_32B;
  return row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
}

}  // namespace

const char* TensorMapRefusal(const TensorView& view) {
  const auto bytes = static_cast<std::int64_t>(SizeOf(view.dtype));
  if (reinterpret_cast<std::uintptr_t>(view.data) % kAlignment != 0) {
    return "an operand does not start on 16 bytes";
  }
  for (int dim = 0; dim + 1 < view.rank; ++dim) {
    if (view.size(dim) <= 1) continue;
    const std::int64_t stride = view.stride(dim) * bytes;
    if (stride <= 0 || stride % kAlignment != 0 || stride >= kMaxStrideBytes) {
      return "an operand has a stride that is no positive multiple of 16 bytes";
    }
  }
  return nullptr;
}

CUtensorMap MakeTensorMap(const TensorView& view, int box_dim, int box_tokens) {
  const std::size_t bytes = SizeOf(view.dtype);
  // From the fastest to the slowest: D, token, head, row, batch.
  constexpr std::array<int, 5> kOrder = {4, 2, 3, 1, 0};
  std::array<cuuint64_t, 5> sizes{};
  std::array<cuuint64_t, 4> strides{};
  for (std::size_t i = 0; i < kOrder.size(); ++i) {
    const int dim = kOrder[i];
    sizes[i] = static_cast<cuuint64_t>(view.size(dim));
    if (i == 0) continue;
    // Nothing moves along a dimension of one, whatever its stride says.
    strides[i - 1] = view.size(dim) > 1 ? static_cast<cuuint64_t>(view.stride(dim)) * bytes
                                        : cuuint64_t{kAlignment};
  }
  const std::array<cuuint32_t, 5> box = {static_cast<cuuint32_t>(box_dim),
                                         static_cast<cuuint32_t>(box_tokens), 1, 1, 1};
  const std::array<cuuint32_t, 5> steps = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = FindEncode()(
      &map,
      view.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      5, view.data, sizes.data(), strides.data(), box.data(), steps.data(),
      CU_TENSOR_MAP_INTERLEAVE_NONE, SwizzleOver(static_cast<std::size_t>(box_dim) * bytes),
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    Fail(ErrorCode::kDevice, "cuTensorMapEncodeTiled: error ", static_cast<int>(result));
  }
  return map;
}

}  // namespace megafold::cuda
