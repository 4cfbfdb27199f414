// The learning rate as a function of the step alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "train/config.h"

namespace megafold::train {

// rate(step) = learning_rate * min(1, step / warmup_steps) * decay_factor^floor(step / decay_every)
// with steps counted from 1.
inline double LearningRate(const OptimizerConfig& config, std::int64_t step) {
  const double warm_up =
      config.warmup_steps == 0 ? 1.0 : static_cast<double>(step) / config.warmup_steps;
  return config.learning_rate * std::min(1.0, warm_up) *
         std::pow(config.decay_factor, static_cast<double>(step / config.decay_every));
}

}  // namespace megafold::train
