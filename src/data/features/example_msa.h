// The alignment features of a crop.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/features/array.h"
#include "data/features/entry.h"

namespace megafold::data {

// Adds msa, msa_deletions, msa_mask, profile and deletion_mean for the crop's tokens. Of the rows
// that have something other than gaps for a chain of the crop, the query and a random choice of
// `max_rows` - 1 others, in their order.
void AddMsaFeatures(const Entry& entry, const std::vector<std::int32_t>& tokens,
                    std::int64_t max_rows, std::uint64_t seed,
                    std::map<std::string, Array>* features);

}  // namespace megafold::data
