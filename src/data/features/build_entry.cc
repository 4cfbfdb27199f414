#include "data/features/build_entry.h"

#include <algorithm>

#include "data/features/crop.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

bool IsAlignmentName(const std::string& name) {
  return name.ends_with(".a3m") || name.ends_with(".a3m.gz");
}

// The chain's residues as an alignment's query, and the column of each of its tokens.
QuerySequence QueryOf(const Chain& chain, const ComponentDictionary& dictionary,
                      std::size_t first_token, std::vector<Token>* tokens) {
  QuerySequence query;
  query.type = chain.type;
  std::size_t token = first_token;
  for (std::size_t r = 0; r < chain.residues.size(); ++r) {
    const auto standard = FindStandard(chain.residues[r].component);
    const bool certain =
        standard && standard->type == chain.type && standard->restype != UnknownClass(chain.type);
    const bool cap = dictionary.Find(chain.residues[r].component)->link == LinkType::kNone;
    query.classes.push_back((*tokens)[token].restype);
    query.is_modified.push_back(certain ? 0 : 1);
    query.is_cap.push_back(cap ? 1 : 0);
    const std::int32_t position = (*tokens)[token].residue_index;
    while (token < tokens->size() && (*tokens)[token].asym_id == (*tokens)[first_token].asym_id &&
           (*tokens)[token].residue_index == position) {
      (*tokens)[token++].msa_column = static_cast<std::int32_t>(r);
    }
  }
  return query;
}

void AddAlignments(const std::string& id, const Structure& structure,
                   const ComponentDictionary& dictionary, const AlignmentFolder& folder,
                   std::int64_t max_rows, Entry* entry) {
  std::vector<QuerySequence> queries(structure.chains.size());
  std::map<std::int32_t, std::vector<std::size_t>> copies;  // chains by entity, polymers alone
  std::size_t first_token = 0;
  for (std::size_t c = 0; c < structure.chains.size(); ++c) {
    if (structure.chains[c].type != MoleculeType::kLigand) {
      queries[c] = QueryOf(structure.chains[c], dictionary, first_token, &entry->tokens);
      copies[entry->chains[c].entity_id].push_back(c);
    }
    first_token += static_cast<std::size_t>(entry->summary.chains[c].tokens);
  }
  for (const auto& [entity, chains] : copies) {
    std::vector<fs::path> files;
    std::size_t with_files = chains.front();
    for (auto c = chains.begin(); c != chains.end() && files.empty(); ++c) {
      with_files = *c;
      files = folder.Find(id, structure.chains[*c].id);
    }
    const auto index = static_cast<std::int32_t>(entry->alignments.size());
    entry->alignments.push_back(
        ReadAlignment(files, structure.chains[with_files].id, queries[with_files], max_rows));
    const Alignment& alignment = entry->alignments.back();
    for (const std::size_t c : chains) {
      entry->chains[c].alignment = index;
      ChainSummary& summary = entry->summary.chains[c];
      summary.msa_files = alignment.files;
      summary.msa_rows_read = alignment.rows_read;
      summary.msa_rows = alignment.rows_distinct;
      summary.msa_species = std::count_if(alignment.species.begin(), alignment.species.end(),
                                          [](const std::string& name) { return !name.empty(); });
    }
  }
}

}  // namespace

AlignmentFolder::AlignmentFolder(const fs::path& folder) {
  if (!fs::is_directory(folder)) return;
  for (const auto& file : fs::directory_iterator(folder)) {
    const std::string name = file.path().filename().string();
    if (IsAlignmentName(name)) files_[name] = file.path();
  }
}

std::vector<fs::path> AlignmentFolder::Find(const std::string& entry,
                                            const std::string& chain) const {
  const std::string prefix = entry + chain;
  std::vector<fs::path> found;
  for (auto at = files_.lower_bound(prefix); at != files_.end() && at->first.starts_with(prefix);
       ++at) {
    const char next = at->first[prefix.size()];
    if (next == '_' || next == '.') found.push_back(at->second);
  }
  return found;
}

std::vector<fs::path> AlignmentFolder::OfEntry(const std::string& entry) const {
  std::vector<fs::path> found;
  for (auto at = files_.lower_bound(entry); at != files_.end() && at->first.starts_with(entry);
       ++at) {
    found.push_back(at->second);
  }
  return found;
}

Entry BuildEntry(const std::string& id, const fs::path& file, const ComponentDictionary& dictionary,
                 const AlignmentFolder& alignments, std::int64_t max_msa_rows) {
  const Structure structure = ReadStructure(file, dictionary);
  Entry entry = Tokenize(structure, dictionary);
  entry.id = id;
  entry.summary.entry_id = id;
  if (entry.summary.resolved_tokens == 0) {
    Fail(ErrorCode::kDataCorrupt, structure.file, ": no token has coordinates");
  }
  FindCropCenters(&entry);
  AddAlignments(id, structure, dictionary, alignments, max_msa_rows, &entry);
  std::vector<const Alignment*> parts;
  for (const Alignment& alignment : entry.alignments) parts.push_back(&alignment);
  entry.rows = PlanRows(parts, max_msa_rows);
  entry.summary.msa_rows = std::max<std::int64_t>(entry.rows.size(), 1);
  entry.summary.paired_rows = entry.rows.paired;
  return entry;
}

}  // namespace megafold::data
