// Which atoms are bonded to another residue, and which atoms a residue therefore has.
#pragma once

#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "data/ccd/component.h"
#include "data/mmcif/structure.h"

namespace megafold::data {

// The bond that joins two neighbours of a polymer: C-N of peptides, O3'-P of nucleic acids.
struct PolymerLink {
  const char* first_atom = nullptr;
  const char* second_atom = nullptr;
};
// Null names when the components do not link, or the residues do not follow each other.
PolymerLink LinkBetween(const Residue& first, const Component& first_component,
                        const Residue& second, const Component& second_component);

class LinkedAtoms {
 public:
  LinkedAtoms(const Structure& structure, const ComponentDictionary& dictionary);

  // The atoms of the component that the residue has, as indices: all but its leaving atoms that
  // have no coordinates and hang (through others like them) on an atom bonded to another residue.
  std::vector<int> ExpectedAtoms(std::size_t chain, std::size_t residue,
                                 const Component& component) const;

 private:
  const Structure& structure_;
  std::set<std::tuple<std::size_t, std::size_t, std::string>> linked_;
};

}  // namespace megafold::data
