// An entry's features that do not depend on a seed: the whole structure, before crop and rotation.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data/ccd/dictionary.h"
#include "data/mmcif/structure.h"
#include "data/msa/row_plan.h"
#include "data/summary.h"
#include "data/vec3.h"

namespace megafold::data {

inline constexpr std::int32_t kNoAtom = -1;

// Field names follow docs/features.md.
struct Token {
  std::uint8_t restype = 0;
  MoleculeType type = MoleculeType::kLigand;
  bool modified = false;  // an atom of a modified polymer residue
  bool has_frame = false;
  std::int32_t residue_index = 0;
  std::int32_t asym_id = 0;
  std::int32_t atom_start = 0;
  std::int32_t atom_count = 0;
  std::int32_t center_atom = 0;
  std::int32_t rep_atom = 0;
  std::int32_t frame_atoms[3] = {kNoAtom, kNoAtom, kNoAtom};
  std::int32_t msa_column = -1;  // column of the chain's alignment; -1: no alignment
};

struct Atom {
  std::int32_t token = 0;
  std::int32_t ref_space_uid = 0;
  std::uint8_t element = 0;
  std::int8_t charge = 0;
  bool ref_present = false;
  bool resolved = false;
  std::uint8_t name_chars[4] = {0, 0, 0, 0};
  Vec3 ref_position{};  // as in the dictionary
  Vec3 position{};
};

struct ChainFeatures {
  std::int32_t entity_id = 0;
  std::int32_t sym_id = 0;
  std::int32_t alignment = -1;  // index into Entry::alignments
};

using IndexPair = std::pair<std::int32_t, std::int32_t>;

struct Entry {
  std::string id;
  std::vector<ChainFeatures> chains;  // by asym_id
  std::vector<Token> tokens;
  std::vector<Atom> atoms;
  std::vector<IndexPair> token_bonds;  // tokens, first below second
  std::vector<IndexPair> atom_bonds;   // atoms of bond_atoms
  // For crops: tokens whose centre atom is resolved, and those of them near another chain.
  std::vector<std::int32_t> resolved_tokens;
  std::vector<std::int32_t> interface_tokens;
  std::vector<Alignment> alignments;  // one per polymer entity
  RowPlan rows;
  EntrySummary summary;

  std::size_t Bytes() const;  // memory held, for the cache
};

// Tokens, atoms, bonds and frames of `structure`: everything but alignments, whose fields are left
// empty. Error as ReadStructure.
Entry Tokenize(const Structure& structure, const ComponentDictionary& dictionary);

}  // namespace megafold::data
