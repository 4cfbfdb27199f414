#include "data/io/text_file.h"

#include <zlib.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <sstream>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

constexpr std::uint64_t kMaxBytes = std::uint64_t{8} << 30;
constexpr std::size_t kChunk = std::size_t{1} << 18;

struct CloseGz {
  void operator()(gzFile file) const { gzclose_r(file); }
};
using GzFile = std::unique_ptr<gzFile_s, CloseGz>;

}  // namespace

std::string ReadTextFile(const std::filesystem::path& file) {
  if (!std::filesystem::is_regular_file(file)) {
    Fail(ErrorCode::kNotFound, file.string(), ": no such file");
  }
  const GzFile stream(gzopen(file.c_str(), "rb"));
  if (stream == nullptr) Fail(ErrorCode::kNotFound, file.string(), ": cannot be opened");
  gzbuffer(stream.get(), static_cast<unsigned>(kChunk));
  std::string text;
  for (;;) {
    const std::size_t size = text.size();
    if (size > kMaxBytes) {
      Fail(ErrorCode::kDataCorrupt, file.string(), ": larger than ", kMaxBytes >> 30, " GiB");
    }
    text.resize(size + kChunk);
    const int got = gzread(stream.get(), text.data() + size, static_cast<unsigned>(kChunk));
    text.resize(size + (got > 0 ? static_cast<std::size_t>(got) : 0));
    if (got == static_cast<int>(kChunk)) continue;
    // A stream that stops early is Z_BUF_ERROR, told only by gzerror.
    int status = Z_OK;
    const char* message = gzerror(stream.get(), &status);
    if (got < 0 || (status != Z_OK && status != Z_STREAM_END)) {
      const std::string told = message;  // as a rule "path: reason"
      const std::size_t colon = told.rfind(": ");
      Fail(ErrorCode::kDataCorrupt, file.string(), ": torn gzip file (",
           told.substr(colon == std::string::npos ? 0 : colon + 2), ")");
    }
    return text;
  }
}

std::string ReadBytes(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream bytes;
  if (!(bytes << stream.rdbuf())) {
    Fail(ErrorCode::kNotFound, file.string(), ": empty or cannot be read");
  }
  return std::move(bytes).str();
}

}  // namespace megafold::data
