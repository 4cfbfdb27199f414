// The ground truth of every copy of the crop's chains, for the permutation of chains in the losses.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/features/array.h"
#include "data/features/entry.h"

namespace megafold::data {

// Adds entity_copies, atom_copy_positions and atom_copy_resolved (docs/features.md) for a crop of
// these tokens and atoms of the entry. An atom corresponds to that of the same name in the residue
// of the same place in the other chain; a crop in which no chain has a copy gets no row at all.
void AddChainCopies(const Entry& entry, const std::vector<std::int32_t>& tokens,
                    const std::vector<std::int32_t>& atoms, std::map<std::string, Array>* features);

}  // namespace megafold::data
