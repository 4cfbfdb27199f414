// What an entry became: the content of `megafold inspect`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace megafold::data {

struct ChainSummary {
  std::string id;           // label_asym_id
  std::string type;         // protein, rna, dna or ligand
  std::string description;  // the sequence, or the components of a ligand ("NAG NAG")
  int entity = 0;           // from 0
  std::int64_t residues = 0;
  std::int64_t unresolved_residues = 0;  // in the sequence, without a single coordinate
  std::int64_t tokens = 0;
  std::int64_t atoms = 0;
  std::int64_t resolved_atoms = 0;
  std::vector<std::string> msa_files;  // empty: the query is the only row
  std::int64_t msa_rows_read = 0;      // rows in the files
  std::int64_t msa_rows = 0;           // after removal of duplicates, the query among them
  std::int64_t msa_species = 0;        // rows whose header names a species
};

// Something of the file that the features do not have, or that is not there though it was expected.
struct LeftOut {
  std::string what;  // "water", "hydrogen", "alternative location", "component UNL", ...
  std::string why;
  std::int64_t count = 0;
};

struct EntrySummary {
  std::string entry_id;
  std::string file;
  std::string method;        // "X-RAY DIFFRACTION", empty when not stated
  std::string release_date;  // yyyy-mm-dd, empty when not stated
  double resolution = 0;     // Angstrom, 0 when not stated
  std::int64_t tokens = 0;
  std::int64_t resolved_tokens = 0;  // with at least one coordinate
  std::int64_t protein_tokens = 0;   // tokens by molecule type: these four add up to `tokens`
  std::int64_t rna_tokens = 0;
  std::int64_t dna_tokens = 0;
  std::int64_t ligand_tokens = 0;
  std::int64_t modified_tokens = 0;  // those of modified residues; also counted by type
  std::int64_t atoms = 0;
  std::int64_t resolved_atoms = 0;
  std::int64_t bonds = 0;        // entries of bond_atoms
  std::int64_t msa_rows = 0;     // of the assembled alignment, at most max_msa_rows
  std::int64_t paired_rows = 0;  // of these, rows that join chains of one species
  std::vector<ChainSummary> chains;
  std::vector<LeftOut> left_out;
};

// Several lines for people, ending in a newline.
std::string ToText(const EntrySummary& summary);

}  // namespace megafold::data
