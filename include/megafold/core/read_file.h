// Small files as text, through C's streams: libraries that PyTorch's process loads keep clear of C++ locales.
#pragma once

#include <cstddef>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

namespace megafold {

// The first `limit` bytes of a file; nothing when it cannot be opened or read.
inline std::optional<std::string> ReadFile(const std::string& path, std::size_t limit) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return std::nullopt;
  std::string text;
  char buffer[4096];
  while (text.size() < limit) {
    const std::size_t wanted = limit - text.size() < sizeof(buffer) ? limit - text.size() : sizeof(buffer);
    const std::size_t got = std::fread(buffer, 1, wanted, file.get());
    text.append(buffer, got);
    if (got < wanted) break;
  }
  if (std::ferror(file.get()) != 0) return std::nullopt;
  return text;
}

}  // namespace megafold
