#include "train/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "megafold/core/error.h"

namespace megafold::train {
namespace {

[[noreturn]] void FailIo(const std::filesystem::path& file, const char* what) {
  Fail(ErrorCode::kInternal, file.string(), ": ", what, ": ", std::strerror(errno));
}

}  // namespace

FileWriter::FileWriter(std::filesystem::path file) : file_(std::move(file)) {
  descriptor_ = open(file_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) FailIo(file_, "cannot create this file");
}

FileWriter::~FileWriter() {
  if (descriptor_ >= 0) close(descriptor_);
}

void FileWriter::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;  // Ctrl-C must not tear a file
    if (written < 0) FailIo(file_, "cannot write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void FileWriter::Finish() {
  if (fsync(descriptor_) != 0) FailIo(file_, "cannot flush to the disk");
  const int closed = close(descriptor_);
  descriptor_ = -1;
  if (closed != 0) FailIo(file_, "cannot close");
}

std::filesystem::path HiddenNeighbour(const std::filesystem::path& path, std::string_view suffix) {
  return path.parent_path() / StrCat(".", path.filename().string(), suffix);
}

void SyncFolder(const std::filesystem::path& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) FailIo(folder, "cannot open this folder");
  const int synced = fsync(descriptor);
  const int reason = errno;
  close(descriptor);
  // Some network file systems cannot sync a folder; they order renames themselves.
  if (synced != 0 && reason != EINVAL) {
    errno = reason;
    FailIo(folder, "cannot flush this folder to the disk");
  }
}

void WriteFileAtomically(const std::filesystem::path& file, std::string_view text) {
  const std::filesystem::path folder = file.parent_path().empty() ? "." : file.parent_path();
  const std::filesystem::path partial = HiddenNeighbour(file, ".partial");
  FileWriter writer(partial);
  writer.Write(text);
  writer.Finish();
  std::filesystem::rename(partial, file);
  SyncFolder(folder);
}

void RemoveFolderAtomically(const std::filesystem::path& folder) {
  const std::filesystem::path doomed = HiddenNeighbour(folder, ".removed");
  std::filesystem::remove_all(doomed);
  std::filesystem::rename(folder, doomed);
  std::filesystem::remove_all(doomed);
}

std::string ReadTextFile(const std::filesystem::path& file, std::size_t limit) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(file, error);
  if (error) Fail(ErrorCode::kNotFound, file.string(), ": cannot read this file");
  if (bytes > limit) {
    Fail(ErrorCode::kDataCorrupt, file.string(), ": has ", bytes, " bytes, expected at most ",
         limit);
  }
  std::string text(bytes, '\0');
  std::ifstream stream(file, std::ios::binary);
  if (!stream.read(text.data(), static_cast<std::streamsize>(bytes))) {
    Fail(ErrorCode::kNotFound, file.string(), ": cannot read this file");
  }
  return text;
}

}  // namespace megafold::train
