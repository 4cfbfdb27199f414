// The coordinates of an mmCIF file: residues with their atoms, one alternative of each.
#pragma once

#include <cstdint>
#include <gemmi/cifdoc.hpp>
#include <string>
#include <vector>

#include "data/mmcif/left_out.h"
#include "data/vec3.h"

namespace megafold::data {

struct AtomSite {
  std::string name;
  Vec3 position{};
};

struct Residue {
  std::string asym;       // label_asym_id
  int seq = 0;            // label_seq_id; 0 where the file has none (not part of a polymer)
  std::string auth_asym;  // the author's names: struct_conn refers to them in every file
  std::string auth_seq;
  std::string insertion;  // empty when none
  std::string component;
  std::vector<AtomSite> atoms;  // heavy, resolved; empty: missing from the structure
};

// "chain A, residue 12 (LYS)", for messages.
std::string NameOf(const Residue& residue);

// Residues of the first model in the order of the file. Left out and counted: other models,
// hydrogens, waters, atoms of occupancy 0, and all alternative locations of a residue but the one
// of the highest mean occupancy (the first of equals). Selenomethionine MSE becomes MET, and
// arginine's NH1 is the one nearer to CD. Error (kDataCorrupt) when the table or a needed column is
// missing or a number does not parse.
std::vector<Residue> ReadAtomSite(gemmi::cif::Block& block, const std::string& file,
                                  LeftOutCounts* left_out);

}  // namespace megafold::data
