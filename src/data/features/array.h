// Plain arrays by name: what the data pipeline hands to the trainer. docs/features.md lists every
// name, type and shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace megafold::data {

enum class ArrayType : std::uint8_t { kUInt8, kInt32, kFloat32 };

template <typename T>
struct ArrayTypeOf;
template <>
struct ArrayTypeOf<std::uint8_t> {
  static constexpr ArrayType value = ArrayType::kUInt8;
};
template <>
struct ArrayTypeOf<std::int32_t> {
  static constexpr ArrayType value = ArrayType::kInt32;
};
template <>
struct ArrayTypeOf<float> {
  static constexpr ArrayType value = ArrayType::kFloat32;
};

// A row-major array that owns its elements. Booleans are uint8 0 or 1.
class Array {
 public:
  Array() = default;
  // Zero-filled.
  Array(ArrayType type, std::vector<std::int64_t> shape);

  ArrayType type() const { return type_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t numel() const;
  std::span<const std::byte> bytes() const { return bytes_; }
  std::span<std::byte> bytes() { return bytes_; }

  // Throws megafold::Error when T is not the element type.
  template <typename T>
  std::span<T> values() {
    CheckType(ArrayTypeOf<T>::value);
    return {reinterpret_cast<T*>(bytes_.data()), bytes_.size() / sizeof(T)};
  }
  template <typename T>
  std::span<const T> values() const {
    CheckType(ArrayTypeOf<T>::value);
    return {reinterpret_cast<const T*>(bytes_.data()), bytes_.size() / sizeof(T)};
  }

 private:
  void CheckType(ArrayType wanted) const;

  ArrayType type_ = ArrayType::kFloat32;
  std::vector<std::int64_t> shape_;
  std::vector<std::byte> bytes_;
};

// One training example: a cropped entry, without batch dimension or padding.
struct Example {
  std::string entry_id;
  std::map<std::string, Array> features;
};

}  // namespace megafold::data
