// Element types that a TensorView can describe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace megafold {

enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kBool };

constexpr std::size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kBool: return 1;
  }
  return 0;
}

constexpr const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return "float64";
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
    case DType::kBool: return "bool";
  }
  return "unknown";
}

}  // namespace megafold
