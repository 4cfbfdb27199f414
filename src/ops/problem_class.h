// The name of a class of problems (megafold/ops/tuning.h), written without allocating: it is needed
// on every call while tuned choices are set.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "megafold/core/dtype.h"
#include "megafold/core/tensor_view.h"

namespace megafold::ops {

enum class Direction : std::uint8_t { kForward, kBackward };

constexpr const char* Name(Direction direction) {
  return direction == Direction::kForward ? "forward" : "backward";
}

// The smallest of 0, 1, 2, 3, 4, 6, 8, 12, ... that is at least `size`.
std::int64_t SizeClass(std::int64_t size);

class ProblemClass {
 public:
  ProblemClass(const char* op, Direction direction, DType storage);
  ProblemClass& Size(const char* name, std::int64_t size);    // rounded up
  ProblemClass& Exact(const char* name, std::int64_t value);  // as it is
  ProblemClass& Word(const char* name, const char* value);
  // An optional operand's element type: "none" where it is absent.
  ProblemClass& Type(const char* name, const TensorView& view) {
    return Word(name, view.defined() ? Name(view.dtype) : "none");
  }
  std::string_view text() const { return {text_.data(), length_}; }

 private:
  void Append(std::string_view piece);

  std::array<char, 384> text_;
  std::size_t length_ = 0;
};

}  // namespace megafold::ops
