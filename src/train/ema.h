// The exponential moving average of a model's weights.
#pragma once

#include <vector>

#include "train/adam.h"

namespace megafold::train {

// average <- decay * average + (1 - decay) * weight after each step; starts as the weights.
class Ema {
 public:
  Ema(NamedParameters parameters, double decay);
  void Update();
  // By parameter name; the averages themselves, not copies.
  NamedTensors State() const;
  // Exchanges weights and averages; a second call puts them back.
  void Swap();

 private:
  NamedParameters parameters_;
  std::vector<at::Tensor> weights_;
  std::vector<at::Tensor> averages_;
  double decay_;
};

// The averages in the model's place while it lives.
class EmaScope {
 public:
  explicit EmaScope(Ema& ema) : ema_(ema) { ema_.Swap(); }
  ~EmaScope() { ema_.Swap(); }
  EmaScope(const EmaScope&) = delete;
  EmaScope& operator=(const EmaScope&) = delete;

 private:
  Ema& ema_;
};

}  // namespace megafold::train
