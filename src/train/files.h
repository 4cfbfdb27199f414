// Files and folders that are either whole or absent, also after a power cut.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace megafold::train {

// Writes pieces to a new file and reports every failure as an Error that names the file; Finish()
// returns once the bytes are on the disk. A file that was not finished is left for its folder's
// owner to remove.
class FileWriter {
 public:
  explicit FileWriter(std::filesystem::path file);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void Write(std::span<const std::byte> bytes);
  void Write(std::string_view text) { Write(std::as_bytes(std::span(text))); }
  void Finish();

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
};

// Replaces `file` by one with this content: never half of it.
void WriteFileAtomically(const std::filesystem::path& file, std::string_view text);

// Makes the entries of a folder (names, renames, removals) durable.
void SyncFolder(const std::filesystem::path& folder);

// The neighbour ".<name><suffix>" of a path, where what is not whole yet, or no more, lies.
std::filesystem::path HiddenNeighbour(const std::filesystem::path& path, std::string_view suffix);

// Fills `folder` by way of a hidden neighbour ".<name>.partial" that is renamed when all is on the
// disk. Throws when `folder` exists already.
template <typename Fill>
void WriteFolderAtomically(const std::filesystem::path& folder, const Fill& fill) {
  const std::filesystem::path partial = HiddenNeighbour(folder, ".partial");
  std::filesystem::remove_all(partial);
  std::filesystem::create_directories(partial);
  fill(partial);
  SyncFolder(partial);
  std::filesystem::rename(partial, folder);
  SyncFolder(folder.parent_path());
}

// Removes a folder such that no moment shows it half removed under its name.
void RemoveFolderAtomically(const std::filesystem::path& folder);

// The content of a text file of at most `limit` bytes.
std::string ReadTextFile(const std::filesystem::path& file, std::size_t limit);

}  // namespace megafold::train
