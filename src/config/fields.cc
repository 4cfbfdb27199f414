#include "config/fields.h"

#include <array>
#include <charconv>
#include <cmath>

namespace megafold::config {

std::string Range::Text() const {
  const bool has_low = std::isfinite(low);
  const bool has_high = std::isfinite(high);
  if (!has_low && !has_high) return "";
  if (!has_high) {
    return (low_open ? " greater than " : " of at least ") + internal::FormatDouble(low);
  }
  if (!has_low) return " of at most " + internal::FormatDouble(high);
  return std::string(" in ") + (low_open ? "(" : "[") + internal::FormatDouble(low) + ", " +
         internal::FormatDouble(high) + "]";
}

namespace internal {
namespace {

// The whole text must be the number: "3x", " 3" and "" are refused.
template <typename T>
bool ParseNumber(const std::string& text, T* out) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  const auto [rest, error] = std::from_chars(begin, end, *out);
  return error == std::errc() && rest == end;
}

template <typename T>
std::string Shortest(T value) {
  std::array<char, 64> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return error == std::errc() ? std::string(buffer.data(), end) : std::string();
}

}  // namespace

bool ParseBool(const std::string& text, bool* out) {
  if (text != "true" && text != "false") return false;
  *out = text == "true";
  return true;
}

bool ParseInt(const std::string& text, std::int64_t* out) { return ParseNumber(text, out); }

bool ParseUnsigned(const std::string& text, std::uint64_t* out) { return ParseNumber(text, out); }

bool ParseDouble(const std::string& text, double* out) {
  return ParseNumber(text, out) && std::isfinite(*out);
}

std::string FormatDouble(double value) { return Shortest(value); }
std::string FormatFloat(float value) { return Shortest(value); }

}  // namespace internal
}  // namespace megafold::config
