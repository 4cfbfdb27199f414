#include "data/mmcif/cif_file.h"

#include <exception>
#include <gemmi/cif.hpp>
#include <string_view>

#include "data/io/text_file.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

bool IsSeparator(std::string_view line) {
  const auto last = line.find_last_not_of(" \t\r");
  return last == 0 && line[0] == '#';
}

std::string_view LastLine(std::string_view text) {
  const auto last = text.find_last_not_of(" \t\r\n");
  if (last == std::string_view::npos) return {};
  text = text.substr(0, last + 1);
  const auto newline = text.rfind('\n');
  return newline == std::string_view::npos ? text : text.substr(newline + 1);
}

// Whether '#' lines stand between categories: one comes right after the data_ line.
bool HasSeparators(std::string_view text) {
  const auto data = text.find("data_");
  const auto end = data == std::string_view::npos ? data : text.find('\n', data);
  if (end == std::string_view::npos) return false;
  const auto next = text.find('\n', end + 1);
  return next != std::string_view::npos && IsSeparator(text.substr(end + 1, next - end - 1));
}

}  // namespace

gemmi::cif::Document ParseCif(const std::string& text, const std::string& name) {
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
    Fail(ErrorCode::kDataCorrupt, name, ": empty file, expected mmCIF");
  }
  gemmi::cif::Document document;
  try {
    document = gemmi::cif::read_memory(text.data(), text.size(), name.c_str());
  } catch (const std::exception& error) {
    const std::string message = error.what();
    const bool named = message.rfind(name, 0) == 0;
    Fail(ErrorCode::kDataCorrupt, named ? "" : name + ": ", message, " (not valid mmCIF)");
  }
  if (document.blocks.empty()) Fail(ErrorCode::kDataCorrupt, name, ": holds no data_ block");
  if (HasSeparators(text) && !IsSeparator(LastLine(text))) {
    Fail(ErrorCode::kDataCorrupt, name, ": breaks off in line '", LastLine(text).substr(0, 60),
         "', expected '#' at the end");
  }
  return document;
}

gemmi::cif::Document ReadCifFile(const std::filesystem::path& file) {
  return ParseCif(ReadTextFile(file), file.string());
}

}  // namespace megafold::data
