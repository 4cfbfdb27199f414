// Small random batches and models for the tests of src/model.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>

#include "model/config.h"
#include "model/features.h"

namespace megafold::model::testing {

struct BatchSizes {
  std::int64_t batch = 1;
  std::int64_t tokens = 9;
  std::int64_t rows = 5;
  std::int64_t templates = 2;
};

// Two chains, 1 to 4 atoms a token, unresolved atoms, gaps in alignment and templates; two bonds.
// Without padding.
Features RandomBatch(const BatchSizes& sizes, std::uint64_t seed);

// The same batch with more tokens, atoms, rows and templates. Masks are 0 there, indices 0,
// everything else arbitrary.
Features Padded(const Features& features, std::uint64_t seed);

// Every module in miniature, widths that differ from one another.
ModelConfig TinyConfig(Ops ops);

// Random values for every parameter: the initial ones zero many paths.
void Randomise(torch::nn::Module& module, std::uint64_t seed);

// Whether a parameter adds the same to all of a softmax's logits: its gradient is rounding around
// 0.
bool HasNoEffect(const std::string& parameter);

// Largest |a - b| over the largest |b|.
double RelativeError(const at::Tensor& a, const at::Tensor& b);

}  // namespace megafold::model::testing
