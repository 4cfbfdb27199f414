// The attentions that a configuration runs, by shape: what `megafold tune` measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace megafold::model {

// q [batch, rows, queries, heads, dim], k and v the same with `keys`, one bias a batch element.
struct AttentionShape {
  std::string use;
  std::int64_t batch, rows, queries, keys, heads, dim;
};

// The sizes of a training batch that a ModelConfig does not say.
struct BatchSizes {
  std::int64_t batch = 1;
  std::int64_t tokens = 0;
  std::int64_t atoms = 0;  // of one entry, before the padding to windows
  std::int64_t templates = 0;
};

// Every attention of a training step; those of one shape once. Throws kInvalidArgument where heads do not divide a width.
std::vector<AttentionShape> AttentionShapes(const ModelConfig& config, const BatchSizes& sizes);

}  // namespace megafold::model
