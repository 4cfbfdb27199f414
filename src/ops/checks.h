// The argument checks that every operator shares. A violation names the operator, the operand, what
// it has and what was expected, and is thrown as kInvalidArgument.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "megafold/core/device.h"
#include "megafold/core/dtype.h"
#include "megafold/core/error.h"
#include "megafold/core/tensor_view.h"

namespace megafold::ops {

// Checks of one call: the operator's name for messages, and the device and storage type that its
// operands share.
class Checks {
 public:
  // `lead` gives the device and the storage type; it must be defined, of `rank` dimensions and a
  // floating type.
  Checks(const char* op, const char* name, const TensorView& lead, int rank);

  using Sizes = std::initializer_list<std::int64_t>;

  // An operand that must be there, in the storage type, with a contiguous last dimension.
  void Operand(const char* name, const TensorView& view, Sizes sizes) const;
  // An operand that may be absent, in the storage type or float32.
  void OptionalParameter(const char* name, const TensorView& view, Sizes sizes) const;
  // Like OptionalParameter, but every stride is free.
  void OptionalBias(const char* name, const TensorView& view, Sizes sizes) const;
  // Like OptionalBias, and bool is allowed.
  void OptionalMask(const char* name, const TensorView& view, Sizes sizes) const;
  // A statistic: float32 (float64 for float64 operands), contiguous, must be there.
  void Statistic(const char* name, const TensorView& view, Sizes sizes) const;
  // A gradient that may be absent: shape and dtype of `of`, contiguous last dimension. Absent when
  // `of` is.
  void OptionalGradient(const char* name, const TensorView& view, const char* of_name,
                        const TensorView& of) const;

  // Throws "<op>: <text>" unless `condition` holds. A view or a span of sizes among the text stands
  // for its shape, which is put into words only then: these checks run on every call.
  template <typename... Args>
  void That(bool condition, const Args&... text) const {
    if (!condition) [[unlikely]]
      Fail(ErrorCode::kInvalidArgument, op_, ": ", Words(text)...);
  }

  const Device& device() const { return device_; }
  DType storage() const { return storage_; }
  DType statistics() const {
    return storage_ == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }

 private:
  static std::string Words(const TensorView& view) { return ShapeString(view); }
  static std::string Words(std::span<const std::int64_t> sizes) { return ShapeString(sizes); }
  template <typename T>
  static const T& Words(const T& text) {
    return text;
  }

  void Placed(const char* name, const TensorView& view, std::span<const std::int64_t> sizes) const;
  void LastStrideOne(const char* name, const TensorView& view) const;
  void Type(const char* name, const TensorView& view, DType dtype) const;

  const char* op_;
  Device device_;
  DType storage_;
};

}  // namespace megafold::ops
