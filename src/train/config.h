// The `train` section of a run's configuration.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "config/fields.h"

namespace megafold::train {

enum class Precision { kFp32, kBf16 };
constexpr auto NamesOf(Precision) {
  return std::to_array<config::Named<Precision>>(
      {{Precision::kFp32, "fp32"}, {Precision::kBf16, "bf16"}});
}

// Adam and its learning rate. Defaults are the AlphaFold 3 supplement's.
struct OptimizerConfig {
  double learning_rate = 1.8e-3;
  std::int64_t warmup_steps = 1000;
  std::int64_t decay_every = 50000;
  double decay_factor = 0.95;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double clip_norm = 10;
  template <class V>
  void Visit(V& v) {
    v("learning_rate", learning_rate, "the learning rate after the warm-up", config::AtLeast(0));
    v("warmup_steps", warmup_steps, "steps over which the rate rises linearly from 0; 0 is none",
      config::AtLeast(0));
    v("decay_every", decay_every, "every so many steps the rate is multiplied by decay_factor",
      config::AtLeast(1));
    v("decay_factor", decay_factor, "what the rate is multiplied by; 1 keeps it",
      config::Between(0, 1));
    v("beta1", beta1, "Adam's decay of the mean gradient", config::Between(0, 1));
    v("beta2", beta2, "Adam's decay of the mean squared gradient", config::Between(0, 1));
    v("epsilon", epsilon, "Adam's epsilon", config::MoreThan(0));
    v("clip_norm", clip_norm, "gradients are scaled down to this global norm", config::MoreThan(0));
  }
};

struct CheckpointConfig {
  std::int64_t every = 1000;
  int keep = 3;
  template <class V>
  void Visit(V& v) {
    v("every", every, "steps between checkpoints; the last step always writes one",
      config::AtLeast(1));
    v("keep", keep, "how many checkpoints stay; older ones are removed", config::AtLeast(1));
  }
};

struct TrainConfig {
  std::int64_t steps = 100000;
  int batch_size = 1;
  int accumulate = 1;
  std::uint64_t seed = 0;
  std::string device = "auto";
  int threads = 0;
  Precision precision = Precision::kFp32;
  OptimizerConfig optimizer;
  double ema_decay = 0.999;
  CheckpointConfig checkpoint;
  std::int64_t report_every = 10;
  template <class V>
  void Visit(V& v) {
    v("steps", steps, "optimiser steps of the whole run, resumed parts included",
      config::AtLeast(1));
    v("batch_size", batch_size, "entries in one forward pass", config::AtLeast(1));
    v("accumulate", accumulate, "forward and backward passes per step, their gradients averaged",
      config::AtLeast(1));
    v("seed", seed,
      "of the order of entries and everything drawn in a step; model.init_seed is the weights'");
    v("device", device, "auto (the accelerator if PyTorch has one, else cpu), cpu, cuda or cuda:N");
    v("threads", threads,
      "CPU threads of PyTorch and of the fused operators; 0 is PyTorch's choice",
      config::AtLeast(0));
    v("precision", precision, "bf16 runs the model under autocast; weights stay fp32");
    v("optimizer", optimizer, "");
    v("ema_decay", ema_decay, "decay of the averaged weights that predictions use; 0 is none",
      config::Between(0, 1));
    v("checkpoint", checkpoint, "");
    v("report_every", report_every, "steps between two lines where the output is not a terminal",
      config::AtLeast(1));
  }
};

}  // namespace megafold::train
