// A borrowed, strided view of memory: what every operator takes and gives. It owns nothing and is cheap to copy.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "megafold/core/device.h"
#include "megafold/core/dtype.h"

namespace megafold {

inline constexpr int kMaxRank = 6;

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> sizes{};
  std::array<std::int64_t, kMaxRank> strides{};  // in elements; a broadcast dimension has stride 0

  // An absent optional operand is a default-constructed view.
  bool defined() const { return rank > 0; }
  std::int64_t size(int dim) const { return sizes[static_cast<std::size_t>(dim)]; }
  std::int64_t stride(int dim) const { return strides[static_cast<std::size_t>(dim)]; }
  std::int64_t numel() const;
  bool contiguous() const;  // row-major without gaps; dimensions of size 1 may have any stride
  std::span<const std::int64_t> shape() const {
    return {sizes.data(), static_cast<std::size_t>(rank)};
  }

  template <typename T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

// A row-major view over `data`.
TensorView MakeView(void* data, DType dtype, std::initializer_list<std::int64_t> sizes,
                    Device device = {});

// "[2, 3, 5]"
std::string ShapeString(std::span<const std::int64_t> sizes);
inline std::string ShapeString(const TensorView& view) { return ShapeString(view.shape()); }

}  // namespace megafold
