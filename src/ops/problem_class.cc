#include "ops/problem_class.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "megafold/core/error.h"

namespace megafold::ops {

std::int64_t SizeClass(std::int64_t size) {
  if (size <= 1) return std::max<std::int64_t>(size, 0);
  if (size > std::numeric_limits<std::int64_t>::max() / 4) return size;
  std::int64_t power = 1;
  while (power * 2 < size) power *= 2;
  // Now power < size <= 2 power.
  return power > 1 && size <= power + power / 2 ? power + power / 2 : power * 2;
}

ProblemClass::ProblemClass(const char* op, Direction direction, DType storage) {
  Append(op);
  Append(" ");
  Append(Name(direction));
  Append(" ");
  Append(Name(storage));
}

ProblemClass& ProblemClass::Size(const char* name, std::int64_t size) {
  return Exact(name, SizeClass(size));
}

ProblemClass& ProblemClass::Exact(const char* name, std::int64_t value) {
  std::array<char, 24> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  *end = '\0';
  return Word(name, digits.data());
}

ProblemClass& ProblemClass::Word(const char* name, const char* value) {
  Append(" ");
  Append(name);
  Append("=");
  Append(value);
  return *this;
}

void ProblemClass::Append(std::string_view piece) {
  if (piece.size() > text_.size() - length_) {
    Fail(ErrorCode::kInternal, "the class '", text(), "' is too long a name");
  }
  std::copy(piece.begin(), piece.end(), text_.begin() + static_cast<std::ptrdiff_t>(length_));
  length_ += piece.size();
}

}  // namespace megafold::ops
