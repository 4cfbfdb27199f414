// From residues in the order of a file to chains.
#pragma once

#include <string>
#include <vector>

#include "data/mmcif/sequence.h"
#include "data/mmcif/structure.h"

namespace megafold::data {

// A bond between residues, as indices into the list of residues.
struct ResidueBond {
  std::size_t first = 0;
  std::size_t second = 0;
  std::string first_atom;
  std::string second_atom;
};

// Fills chains and bonds of `structure`, whose file name is set.
//
// A residue belongs to its chain's polymer when it has a label_seq_id and either its component
// links into polymers, or the sequence lists it, or it is bonded to the residue before or after
// (caps). Everything else is a ligand: residues of one label_asym_id that are bonded to each other
// (a glycan) are one chain.
void BuildChains(std::vector<Residue> residues, const std::vector<ResidueBond>& bonds,
                 const Sequences& sequences, const ComponentDictionary& dictionary,
                 Structure* structure);

}  // namespace megafold::data
