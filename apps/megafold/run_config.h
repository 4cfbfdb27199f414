// The configuration of a run: what a file in configs/ may say.
#pragma once

#include <string>

#include "config/fields.h"
#include "data/config.h"
#include "model/config.h"
#include "train/config.h"

namespace megafold::apps {

// After training, one entry is predicted whole and written beside its true structure.
struct PredictionConfig {
  std::string entry;
  int samples = 1;
  int steps = 200;

  template <class V>
  void Visit(V& v) {
    v("entry", entry, "entry predicted once training has finished; empty: none");
    v("samples", samples, "structures sampled; the one nearest to the truth is written",
      config::AtLeast(1));
    v("steps", steps, "denoising steps of each sample", config::AtLeast(1));
  }
};

struct RunConfig {
  model::ModelConfig model;
  data::DataConfig data;
  train::TrainConfig train;
  PredictionConfig prediction;

  template <class V>
  void Visit(V& v) {
    v("model", model, "");
    v("data", data, "");
    v("train", train, "");
    v("prediction", prediction, "");
  }
};

}  // namespace megafold::apps
