// A small model and data that stand in for AlphaFold 3 and the pipeline: the trainer knows neither.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/utils.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "train/batch_source.h"
#include "train/trainable.h"

namespace megafold::train::toy {

// y = W2 tanh(W1 x + b1) with noise on x drawn from the seed, so that a wrong seed shows.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    torch::manual_seed(11);
    first = register_module("first", torch::nn::Linear(5, 7));
    second = register_module("second", torch::nn::Linear(7, 3));
    unused = register_parameter("unused", torch::ones({2}));
    scale = register_buffer("scale", torch::full({1}, 0.5));
  }
  torch::nn::Linear first{nullptr};
  torch::nn::Linear second{nullptr};
  at::Tensor unused;  // never has a gradient
  at::Tensor scale;
};
TORCH_MODULE(Net);

class Model : public Trainable {
 public:
  torch::nn::Module& module() override { return *net; }

  LossResult Loss(const TensorDict& batch, std::uint64_t seed) override {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    const at::Tensor& x = batch.at("x");
    const at::Tensor noise = at::randn(x.sizes(), generator) * 0.1;
    const at::Tensor raw = net->second(at::tanh(net->first(x + noise)));
    seen_dtype = raw.scalar_type();
    const at::Tensor y = raw * net->scale;
    const at::Tensor error = (y.to(at::kFloat) - batch.at("y")).square().mean();
    const at::Tensor size = net->first->weight.square().sum();
    return {error + 1e-4 * size, {{"error", error.detach()}, {"size", size.detach()}}};
  }

  at::Tensor Predict(const TensorDict& batch, std::uint64_t /*seed*/) override {
    return net->second(at::tanh(net->first(batch.at("x")))).unsqueeze(1);
  }

  Net net;
  at::ScalarType seen_dtype = at::kFloat;
};

// Batch k has inputs drawn from seed k and the sum of thirds of its inputs as target.
class Source : public BatchSource {
 public:
  explicit Source(std::int64_t first, std::int64_t bad_batch = -1)
      : next_(first), bad_batch_(bad_batch) {}

  TrainBatch Next() override {
    auto generator =
        at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(100 + next_));
    at::Tensor x = at::randn({4, 5}, generator);
    const at::Tensor y = at::stack({x.sum(1), x.select(1, 0), x.select(1, 1)}, 1) / 3;
    if (next_ == bad_batch_) x.fill_(std::numeric_limits<float>::quiet_NaN());
    const std::string id = "toy" + std::to_string(next_);
    ++next_;
    return {{id}, {{"x", x}, {"y", y}}};
  }
  std::vector<SkippedEntry> Skipped() const override {
    return {{"torn", "torn.cif: ends early", 3}};
  }

 private:
  std::int64_t next_;
  std::int64_t bad_batch_;
};

inline BatchSourceFactory Sources(std::int64_t bad_batch = -1) {
  return [bad_batch](std::int64_t first) { return std::make_unique<Source>(first, bad_batch); };
}

// A folder of the test's own, removed at its end.
class Folder {
 public:
  explicit Folder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("megafold-" + name + "-" + std::to_string(getpid()))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace megafold::train::toy
