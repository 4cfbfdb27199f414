// The one exception type of the library, and the helper that raises it.
//
// Every failure a caller can cause (a wrong shape, an unsupported dtype, a torn file) or that a device reports is thrown
// as megafold::Error. The message names the offending thing and the expected value; the code lets callers tell bad input
// from a broken machine. Nothing in the library calls exit() or prints an error instead of raising it.
#pragma once

#include <charconv>
#include <concepts>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace megafold {

enum class ErrorCode {
  kInvalidArgument,  // the caller passed something outside the documented domain
  kUnsupported,      // the problem is valid but no implementation accepts it
  kDataCorrupt,      // a file's content contradicts its format
  kNotFound,         // a file, entry or key does not exist
  kDevice,           // the device runtime reported a failure
  kInternal,         // an invariant of ours is broken; always a bug
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

namespace internal {

// A number of up to 64 bits in the fewest characters that read back as it.
template <typename T>
void AppendNumber(std::string* out, T value) {
  char text[32];  // the longest is a double: -2.2250738585072014e-308
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  out->append(text, static_cast<std::size_t>(end - text));
}

template <typename T>
void Append(std::string* out, const T& value) {
  if constexpr (std::same_as<T, bool>) {
    out->append(value ? "true" : "false");
  } else if constexpr (std::same_as<T, char>) {
    out->push_back(value);
  } else if constexpr (std::signed_integral<T>) {
    AppendNumber(out, static_cast<long long>(value));
  } else if constexpr (std::unsigned_integral<T>) {
    AppendNumber(out, static_cast<unsigned long long>(value));
  } else if constexpr (std::same_as<T, float> || std::same_as<T, double>) {
    AppendNumber(out, value);
  } else {
    static_assert(std::convertible_to<const T&, std::string_view>,
                  "messages are made of text, char, bool, integers, float and double");
    out->append(std::string_view(value));
  }
}

}  // namespace internal

// The arguments as text, one after the other: numbers as std::to_chars writes them, bool as true or
// false. No stream and no locale: a Python process may hold more than one copy of the C++ runtime's
// locale facets, and a stream that meets the wrong one ends the process instead of raising an error.
template <typename... Args>
std::string StrCat(const Args&... args) {
  std::string out;
  (internal::Append(&out, args), ...);
  return out;
}

template <typename... Args>
[[noreturn]] void Fail(ErrorCode code, const Args&... args) {
  throw Error(code, StrCat(args...));
}

// Throws kInvalidArgument with the concatenated message unless `condition` holds.
template <typename... Args>
void Require(bool condition, const Args&... message) {
  if (!condition) [[unlikely]] Fail(ErrorCode::kInvalidArgument, message...);
}

}  // namespace megafold
