// AlphaFold 3 as the trainer sees it.
#pragma once

#include "model/alphafold3.h"
#include "train/trainable.h"

namespace megafold::apps {

class AlphaFold3Trainable : public train::Trainable {
 public:
  // `sample_steps` denoising steps make a prediction.
  AlphaFold3Trainable(const model::ModelConfig& config, int sample_steps)
      : model_(config), sample_steps_(sample_steps) {}

  torch::nn::Module& module() override { return *model_; }

  train::LossResult Loss(const train::TensorDict& batch, std::uint64_t seed) override {
    model::LossOutput loss = model_->Loss(batch, seed);
    return {std::move(loss.total), std::move(loss.terms)};
  }

  at::Tensor Predict(const train::TensorDict& batch, std::uint64_t seed) override {
    return model_->Sample(batch, seed, sample_steps_);
  }

 private:
  model::AlphaFold3 model_;
  int sample_steps_;
};

}  // namespace megafold::apps
