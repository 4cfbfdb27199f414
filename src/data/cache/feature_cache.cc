#include "data/cache/feature_cache.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "data/cache/entry_bytes.h"
#include "data/cache/hash.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMagic =
    0x31464546474d0aULL;  // also tells a machine of the other byte order
constexpr std::uint64_t kMaxBytes = std::uint64_t{8} << 30;

struct Header {
  std::uint64_t magic = kMagic;
  std::uint64_t format = kEntryFormat << 32 | sizeof(Token) << 16 | sizeof(Atom);
  std::uint64_t key = 0;
  std::uint64_t plain_size = 0;   // of the entry's bytes
  std::uint64_t packed_size = 0;  // of what follows this header
  std::uint64_t packed_hash = 0;
};

fs::path FileOf(const fs::path& folder, const std::string& id) {
  return folder / (id + ".features");
}

class Descriptor {
 public:
  explicit Descriptor(const fs::path& file)
      : file_(file), number_(open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (number_ < 0) Bad("cannot be opened for writing");
  }
  ~Descriptor() { close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void Write(const void* data, std::size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = write(number_, at, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) Bad("cannot be written");
      at += written;
      size -= static_cast<std::size_t>(written);
    }
  }
  void Flush() {
    if (fsync(number_) != 0) Bad("cannot be flushed to the disk");
  }

 private:
  [[noreturn]] void Bad(const char* what) const {
    Fail(ErrorCode::kInternal, file_.string(), ": ", what, " (", std::strerror(errno), ")");
  }

  fs::path file_;
  int number_;
};

}  // namespace

FeatureCache::FeatureCache(fs::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  Require(fs::is_directory(folder_), "data.feature_cache: ", folder_.string(),
          ": cannot be made a folder (", error.message(), ")");
}

std::optional<Entry> FeatureCache::Find(const std::string& id, std::uint64_t key) const {
  const fs::path file = FileOf(folder_, id);
  std::ifstream stream(file, std::ios::binary);
  Header header, expected;
  if (!stream.read(reinterpret_cast<char*>(&header), sizeof(header))) return std::nullopt;
  if (header.magic != expected.magic || header.format != expected.format || header.key != key) {
    return std::nullopt;
  }
  std::error_code error;
  const std::uintmax_t size = fs::file_size(file, error);
  if (error || header.packed_size != size - sizeof(header) || header.packed_size > kMaxBytes ||
      header.plain_size > kMaxBytes) {
    return std::nullopt;
  }
  std::string packed(header.packed_size, '\0');
  if (!stream.read(packed.data(), static_cast<std::streamsize>(packed.size()))) return std::nullopt;
  // The hash goes over the sizes too: nothing is allocated on a torn header's word.
  if (HashBytes(packed, header.plain_size) != header.packed_hash) return std::nullopt;
  std::string plain(header.plain_size, '\0');
  uLongf plain_size = plain.size();
  const int status = uncompress(reinterpret_cast<Bytef*>(plain.data()), &plain_size,
                                reinterpret_cast<const Bytef*>(packed.data()), packed.size());
  if (status != Z_OK || plain_size != plain.size()) return std::nullopt;
  return EntryFromBytes(plain);
}

void FeatureCache::Store(const std::string& id, std::uint64_t key, const Entry& entry) const {
  const std::string plain = EntryToBytes(entry);
  uLongf packed_size = compressBound(plain.size());
  std::string packed(packed_size, '\0');
  const int status =
      compress2(reinterpret_cast<Bytef*>(packed.data()), &packed_size,
                reinterpret_cast<const Bytef*>(plain.data()), plain.size(), Z_BEST_SPEED);
  if (status != Z_OK) Fail(ErrorCode::kInternal, id, ": zlib could not compress its features");
  packed.resize(packed_size);
  Header header;
  header.key = key;
  header.plain_size = plain.size();
  header.packed_size = packed.size();
  header.packed_hash = HashBytes(packed, header.plain_size);

  static std::atomic<int> number = 0;  // two threads may build the same entry
  const fs::path target = FileOf(folder_, id);
  const fs::path partial =
      folder_ / StrCat(".", id, ".", getpid(), ".", number.fetch_add(1), ".partial");
  try {
    Descriptor file(partial);
    file.Write(&header, sizeof(header));
    file.Write(packed.data(), packed.size());
    file.Flush();
  } catch (...) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw;
  }
  std::error_code error;
  fs::rename(partial, target, error);
  if (error)
    Fail(ErrorCode::kInternal, target.string(), ": cannot be made (", error.message(), ")");
}

}  // namespace megafold::data
