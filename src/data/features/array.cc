#include "data/features/array.h"

#include <limits>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

std::int64_t SizeOf(ArrayType type) { return type == ArrayType::kUInt8 ? 1 : 4; }

const char* NameOf(ArrayType type) {
  switch (type) {
    case ArrayType::kUInt8:
      return "uint8";
    case ArrayType::kInt32:
      return "int32";
    case ArrayType::kFloat32:
      return "float32";
  }
  return "unknown";
}

}  // namespace

Array::Array(ArrayType type, std::vector<std::int64_t> shape)
    : type_(type), shape_(std::move(shape)) {
  std::int64_t bytes = SizeOf(type);
  for (const std::int64_t size : shape_) {
    Require(size >= 0, "Array: size ", size, " is negative");
    Require(size == 0 || bytes <= std::numeric_limits<std::int64_t>::max() / size,
            "Array: the shape's product does not fit 64 bits");
    bytes *= size;
  }
  bytes_.resize(static_cast<std::size_t>(bytes));
}

std::int64_t Array::numel() const {
  return static_cast<std::int64_t>(bytes_.size()) / SizeOf(type_);
}

void Array::CheckType(ArrayType wanted) const {
  Require(type_ == wanted, "Array: holds ", NameOf(type_), ", read as ", NameOf(wanted));
}

}  // namespace megafold::data
