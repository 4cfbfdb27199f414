// Which tokens of an entry a training example has (AF3 supplement 2.7).
#pragma once

#include <cstdint>
#include <vector>

#include "data/config.h"
#include "data/features/entry.h"
#include "data/random.h"

namespace megafold::data {

// Sets resolved_tokens and interface_tokens. Near is within 15 Angstrom between centre atoms.
void FindCropCenters(Entry* entry);

// Each of the following returns at most `count` token indices, ascending.

// A run of tokens from each chain, chains in shuffled order, until `count` are taken.
std::vector<std::int32_t> ContiguousCrop(const Entry& entry, std::int64_t count, Random& random);

// The tokens whose centre atoms are nearest to that of a random token; only resolved centres.
std::vector<std::int32_t> SpatialCrop(const Entry& entry, std::int64_t count, Random& random);

// As SpatialCrop, around a random interface token; an entry without one gets a SpatialCrop.
std::vector<std::int32_t> SpatialInterfaceCrop(const Entry& entry, std::int64_t count,
                                               Random& random);

// All tokens when they are at most `count` or `count` is 0, else one of the above, drawn by weight.
// A contiguous crop in which nothing is resolved is replaced by a spatial one.
std::vector<std::int32_t> DrawCrop(const Entry& entry, std::int64_t count,
                                   const CropWeights& weights, Random& random);

}  // namespace megafold::data
