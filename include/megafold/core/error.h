// The one exception type of the library, and the helper that raises it.
//
// Every failure a caller can cause (a wrong shape, an unsupported dtype, a torn file) or that a device reports is thrown
// as megafold::Error. The message names the offending thing and the expected value; the code lets callers tell bad input
// from a broken machine. Nothing in the library calls exit() or prints an error instead of raising it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

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

// Concatenates the arguments with operator<<.
template <typename... Args>
std::string StrCat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
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
