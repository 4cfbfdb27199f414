// From files to an Entry.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "data/features/entry.h"

namespace megafold::data {

// The alignment files of a chain: <entry><chain>.a3m, <entry><chain>_ANYTHING.a3m, each also .gz.
class AlignmentFolder {
 public:
  // A folder that does not exist holds nothing.
  explicit AlignmentFolder(const std::filesystem::path& folder);
  // Sorted by name.
  std::vector<std::filesystem::path> Find(const std::string& entry, const std::string& chain) const;
  // Those of every chain of the entry, and perhaps of others whose names begin like it.
  std::vector<std::filesystem::path> OfEntry(const std::string& entry) const;

 private:
  std::map<std::string, std::filesystem::path> files_;  // by name
};

// Everything of an entry that no seed changes. Chains of one entity share the alignment of the
// first of them that has files.
Entry BuildEntry(const std::string& id, const std::filesystem::path& file,
                 const ComponentDictionary& dictionary, const AlignmentFolder& alignments,
                 std::int64_t max_msa_rows);

}  // namespace megafold::data
