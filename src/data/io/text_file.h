// Whole text files, plain or gzip.
#pragma once

#include <filesystem>
#include <string>

namespace megafold::data {

// The content, decompressed when the file begins with gzip's two bytes. Error: kNotFound when it
// cannot be opened, kDataCorrupt when the gzip stream is torn or the content is larger than 8 GiB.
std::string ReadTextFile(const std::filesystem::path& file);

// The file as it lies on the disk. Error (kNotFound) when it cannot be read.
std::string ReadBytes(const std::filesystem::path& file);

}  // namespace megafold::data
