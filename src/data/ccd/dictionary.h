// The component dictionary: a folder of .cif files, or one file of many blocks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "data/ccd/component.h"

namespace megafold::data {

// Thread-safe. A component is parsed when it is first asked for. In a folder, component GLY is in
// GLY.cif, GLY.cif.gz, or in any block of components.cif(.gz). Of one file, the text is kept in
// memory (the whole CCD is 0.4 GB; a folder of the components in use is lighter).
class ComponentDictionary {
 public:
  // Error (kNotFound) when the path does not exist.
  explicit ComponentDictionary(std::filesystem::path path);

  // Null when the dictionary does not have it; Error (kDataCorrupt) when its text is not valid.
  std::shared_ptr<const Component> Find(const std::string& id) const;

  // Changes with the dictionary: over the text of one file, or over names, sizes and times of a
  // folder's files.
  std::uint64_t Fingerprint() const;

  const std::filesystem::path& path() const { return path_; }

 private:
  void IndexBlocks(const std::filesystem::path& file);
  std::shared_ptr<const Component> Read(const std::string& id) const;

  std::filesystem::path path_;
  std::filesystem::path blocks_file_;
  std::string text_;                                // of blocks_file_
  std::map<std::string, std::string_view> blocks_;  // into text_
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::shared_ptr<const Component>> components_;
};

}  // namespace megafold::data
