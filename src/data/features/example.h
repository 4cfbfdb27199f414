// From an entry and a seed to a training example.
#pragma once

#include <cstdint>

#include "data/config.h"
#include "data/features/array.h"
#include "data/features/entry.h"

namespace megafold::data {

// Crops, rotates reference conformers, draws alignment rows; then the arrays of docs/features.md,
// without templates (T = 0).
Example MakeExample(const Entry& entry, const DataConfig& config, std::uint64_t seed);

class Random;
// A uniformly random rotation, row-major.

void RandomRotation(Random& random, float (&matrix)[9]);

}  // namespace megafold::data
