// An mmCIF file as chains of residues.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "data/ccd/dictionary.h"
#include "data/features/residue_classes.h"
#include "data/mmcif/atom_site.h"

namespace megafold::data {

struct Chain {
  std::string id;  // label_asym_id; "A.MG.167" for a ligand that shares it with other molecules
  MoleculeType type = MoleculeType::kLigand;
  std::vector<Residue> residues;  // of polymers, in sequence, the missing ones too
};

// A covalent bond between atoms of different residues, from struct_conn.
struct AtomAddress {
  std::size_t chain = 0;
  std::size_t residue = 0;
  std::string atom;
};
struct CovalentBond {
  AtomAddress first;
  AtomAddress second;
};

struct Structure {
  std::string file;
  std::string method;
  std::string release_date;  // yyyy-mm-dd
  double resolution = 0;
  std::vector<Chain> chains;
  std::vector<CovalentBond> bonds;
  LeftOutCounts left_out;
};

// Reads the file as it stands: no assembly is generated from it. docs/data.md gives every rule.
// Error (kDataCorrupt, kNotFound) names file, chain, residue and what was expected: torn file, no
// atoms, a residue that the file lists as observed but has no atoms for, a sequence that
// contradicts the atoms, a component that `dictionary` does not have.
Structure ReadStructure(const std::filesystem::path& file, const ComponentDictionary& dictionary);

}  // namespace megafold::data
