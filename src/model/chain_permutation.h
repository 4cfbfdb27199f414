// Permutation alignment of equal chains (AlphaFold 3 supplement 4.2, after AlphaFold-Multimer 7.3):
// which copy of an entity the ground truth calls A and which B means nothing, so the truth's copies
// are given to the predicted chains as suits the prediction best, before any loss is computed.
// Symmetric atoms within a residue or ligand keep their names.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/features.h"

namespace megafold::model {

// Whether any chain of the batch has a copy. Reads shapes alone: no device is waited for.
bool HasChainCopies(const Features& features);

// `features` with atom_positions and atom_resolved of the copies that suit `predicted` [B, A, 3],
// from atom_copy_positions and atom_copy_resolved.
//
// Greedy, over the centre atoms of tokens: the anchor is the polymer chain of the crop whose entity
// has the fewest copies, of those the longest. Each copy of it in turn is laid onto the predicted
// anchor; the other chains, longest first, then take the nearest copy of their entity that is still
// free. Of these assignments the one with the smallest mean squared deviation after a rigid
// alignment of everything is taken. An entry without an anchor (three resolved atoms in a
// polymer) keeps its chains.
Features PermuteChains(const Features& features, const at::Tensor& predicted);

}  // namespace megafold::model
