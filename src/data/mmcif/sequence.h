// The sequences of a file's polymers, with the residues that have no coordinates.
#pragma once

#include <cstdint>
#include <gemmi/cifdoc.hpp>
#include <map>
#include <string>

namespace megafold::data {

struct SequencePosition {
  std::string component;
  bool observed = false;       // the file says that it has coordinates for it
  bool heterogeneous = false;  // the file lists several components; this is the first
};
// By label_asym_id, then label_seq_id.
using Sequences = std::map<std::string, std::map<int, SequencePosition>>;

// From pdbx_poly_seq_scheme, else from entity_poly_seq (which does not say what was observed);
// empty when the file has neither.
Sequences ReadSequences(gemmi::cif::Block& block, const std::string& file);

}  // namespace megafold::data
