#include "data/mmcif/sequence.h"

#include <charconv>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

int PositionOf(const std::string& text, const std::string& file, const char* tag) {
  int value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest != text.data() + text.size() || value < 1) {
    Fail(ErrorCode::kDataCorrupt, file, ": ", tag, " is '", text, "', expected a number from 1");
  }
  return value;
}

// Selenomethionine is read as methionine, here as in the atoms.
std::string Canonical(const std::string& component) {
  return component == "MSE" ? "MET" : component;
}

void Add(std::map<int, SequencePosition>* sequence, int position, const std::string& component,
         bool observed) {
  const auto [at, added] = sequence->emplace(
      position, SequencePosition{Canonical(component), observed, /*heterogeneous=*/false});
  if (!added && at->second.component != Canonical(component)) at->second.heterogeneous = true;
}

}  // namespace

Sequences ReadSequences(gemmi::cif::Block& block, const std::string& file) {
  Sequences sequences;
  for (const auto& row :
       block.find("_pdbx_poly_seq_scheme.", {"asym_id", "seq_id", "mon_id", "?auth_seq_num"})) {
    const int position = PositionOf(row.str(1), file, "_pdbx_poly_seq_scheme.seq_id");
    Add(&sequences[row.str(0)], position, row.str(2), row.has2(3));
  }
  if (!sequences.empty()) return sequences;

  std::map<std::string, std::map<int, SequencePosition>> of_entity;
  for (const auto& row : block.find("_entity_poly_seq.", {"entity_id", "num", "mon_id"})) {
    const int position = PositionOf(row.str(1), file, "_entity_poly_seq.num");
    Add(&of_entity[row.str(0)], position, row.str(2), false);
  }
  for (const auto& row : block.find("_struct_asym.", {"id", "entity_id"})) {
    const auto entity = of_entity.find(row.str(1));
    if (entity != of_entity.end()) sequences[row.str(0)] = entity->second;
  }
  return sequences;
}

}  // namespace megafold::data
