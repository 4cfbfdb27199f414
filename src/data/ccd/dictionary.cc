#include "data/ccd/dictionary.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "data/cache/hash.h"
#include "data/io/text_file.h"
#include "data/mmcif/cif_file.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

// A component id becomes part of a file name, so nothing else may be in it.
bool IsPlainId(const std::string& id) {
  return !id.empty() && id.size() <= 8 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '+';
  });
}

}  // namespace

ComponentDictionary::ComponentDictionary(fs::path path) : path_(std::move(path)) {
  if (fs::is_directory(path_)) {
    for (const char* name : {"components.cif", "components.cif.gz"}) {
      if (fs::is_regular_file(path_ / name)) {
        IndexBlocks(path_ / name);
        return;
      }
    }
  } else if (fs::is_regular_file(path_)) {
    IndexBlocks(path_);
  } else {
    Fail(ErrorCode::kNotFound, path_.string(),
         ": no such component dictionary, expected a folder of .cif files or one .cif file");
  }
}

void ComponentDictionary::IndexBlocks(const fs::path& file) {
  blocks_file_ = file;
  text_ = ReadTextFile(file);
  const std::string_view text = text_;
  const auto block_start = [&](std::size_t from) {
    if (from == 0 && text.starts_with("data_")) return std::size_t{0};
    const auto at = text.find("\ndata_", from);
    return at == std::string_view::npos ? at : at + 1;
  };
  auto start = block_start(0);
  if (start == std::string_view::npos) {
    Fail(ErrorCode::kDataCorrupt, file.string(), ": holds no data_ block");
  }
  while (start != std::string_view::npos) {
    const auto next = block_start(start + 1);
    const auto block = text.substr(start, next == std::string_view::npos ? next : next - start);
    const auto name_end = block.find_first_of(" \t\r\n");
    const auto name_size = name_end == std::string_view::npos ? name_end : name_end - 5;
    blocks_.emplace(block.substr(5, name_size), block);
    start = next;
  }
}

std::uint64_t ComponentDictionary::Fingerprint() const {
  std::uint64_t hash = HashBytes(text_, 0);
  if (!fs::is_directory(path_)) return hash;
  std::set<fs::path> files;
  for (const auto& file : fs::directory_iterator(path_)) {
    if (file.is_regular_file() && file.path() != blocks_file_) files.insert(file.path());
  }
  for (const fs::path& file : files) {
    const auto time = fs::last_write_time(file).time_since_epoch().count();
    hash = HashBytes(file.filename().string(), Mix(hash, static_cast<std::uint64_t>(time)));
    hash = Mix(hash, fs::file_size(file));
  }
  return hash;
}

std::shared_ptr<const Component> ComponentDictionary::Read(const std::string& id) const {
  const auto block = blocks_.find(id);
  if (block != blocks_.end()) {
    const auto document = ParseCif(std::string(block->second), blocks_file_.string());
    return std::make_shared<const Component>(
        ParseComponent(document.blocks.front(), blocks_file_.string()));
  }
  if (!IsPlainId(id) || !fs::is_directory(path_)) return nullptr;
  for (const char* ending : {".cif", ".cif.gz"}) {
    const fs::path file = path_ / (id + ending);
    if (!fs::is_regular_file(file)) continue;
    auto component = ParseComponent(ReadCifFile(file).blocks.front(), file.string());
    if (component.id != id) {
      Fail(ErrorCode::kDataCorrupt, file.string(), ": describes component '", component.id,
           "', expected '", id, "'");
    }
    return std::make_shared<const Component>(std::move(component));
  }
  return nullptr;
}

std::shared_ptr<const Component> ComponentDictionary::Find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto known = components_.find(id);
  if (known != components_.end()) return known->second;
  auto component = Read(id);
  components_.emplace(id, component);
  return component;
}

}  // namespace megafold::data
