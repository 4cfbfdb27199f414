// A structure as mmCIF, from features and coordinates: for a viewer beside the true one.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "train/trainable.h"

namespace megafold::train {

// One model of the atoms of batch entry 0 where `written` [A] is not 0, at `positions` [A, 3] in
// Angstrom. Chains are A, B, ... in asym_id's order; residues that are no standard amino acid or
// nucleotide are named UNL, for features do not keep the component's name. Needs the features
// atom_to_token, ref_atom_name_chars, ref_element and the per-token asym_id, residue_index,
// entity_id, restype, is_protein, is_rna, is_dna.
std::string StructureMmcif(const std::string& name, const TensorDict& features,
                           const at::Tensor& positions, const at::Tensor& written);

}  // namespace megafold::train
