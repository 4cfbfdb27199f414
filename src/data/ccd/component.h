// A chemical component: what the dictionary (CCD) says of a residue or ligand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <gemmi/cifdoc.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/vec3.h"

namespace megafold::data {

// How a component links into a polymer, from _chem_comp.type.
enum class LinkType : std::uint8_t { kNone, kPeptide, kRna, kDna };

struct ComponentAtom {
  std::string name;
  std::uint8_t element = 0;  // atomic number
  std::int8_t charge = 0;    // formal
  bool leaving = false;      // lost when the atom that carries it is bonded to another residue
  bool has_position = false;
  Vec3 position{};  // reference conformer
};

// Heavy atoms alone, in the dictionary's order.
struct Component {
  std::string id;
  LinkType link = LinkType::kNone;
  char one_letter = 'X';  // of the standard residue it derives from; 'X' unknown
  std::vector<ComponentAtom> atoms;
  std::vector<std::pair<int, int>> bonds;  // indices into `atoms`, first below second

  int Find(std::string_view atom_name) const;  // -1 when there is no such heavy atom
};

// Reads one block of the dictionary; `file` is for messages. The conformer is the ideal one; where
// an atom of that is missing, the whole conformer is the model's, unless that misses more. Error
// (kDataCorrupt) when the block has no atoms table or a number does not parse.
Component ParseComponent(const gemmi::cif::Block& block, const std::string& file);

}  // namespace megafold::data
