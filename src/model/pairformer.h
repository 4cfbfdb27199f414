// PairStack and PairformerStack (Algorithm 17).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <vector>

#include "model/config.h"
#include "model/layers.h"

namespace megafold::model {

// Dropout of a pair block's four updates; undefined where nothing is dropped.
struct PairDropout {
  at::Tensor multiplication_outgoing,
      multiplication_incoming;    // [B, 1, N, c_z], shared by the rows
  at::Tensor attention_starting;  // [B, 1, N, c_z]
  at::Tensor attention_ending;    // [B, N, 1, c_z], shared by the columns
};
PairDropout DrawPairDropout(const at::Tensor& z, double p, const at::Generator& generator);

struct PairStackOptions {
  std::int64_t width = 0;
  std::int64_t heads = 0;
  std::int64_t expansion = 0;
};

// The pair half of a block, in the Pairformer, the MSA module and the template embedder alike.
class PairStackImpl : public torch::nn::Module {
 public:
  PairStackImpl(Ops ops, const PairStackOptions& options);
  // z [B, N, N, width], mask [B, N, N] -> as z
  at::Tensor forward(at::Tensor z, const at::Tensor& mask, const PairDropout& dropout);

 private:
  TriangleMultiplication tri_mul_out_{nullptr}, tri_mul_in_{nullptr};
  TriangleAttention tri_att_start_{nullptr}, tri_att_end_{nullptr};
  Transition transition_{nullptr};
};
TORCH_MODULE(PairStack);

class PairformerBlockImpl : public torch::nn::Module {
 public:
  PairformerBlockImpl(Ops ops, std::int64_t c_s, std::int64_t c_z, const PairformerConfig& config);
  // s [B, N, c_s], z [B, N, N, c_z], token_mask [B, N], pair_mask [B, N, N]; both are updated in
  // place of the caller's variables, not of their memory.
  void forward(at::Tensor& s, at::Tensor& z, const at::Tensor& token_mask,
               const at::Tensor& pair_mask, const PairDropout& dropout);

 private:
  PairStack pair_stack_{nullptr};
  AttentionPairBias attention_{nullptr};
  Transition transition_{nullptr};
};
TORCH_MODULE(PairformerBlock);

class PairformerStackImpl : public torch::nn::Module {
 public:
  explicit PairformerStackImpl(const ModelConfig& config);
  // Shapes as a block's. Dropout only with a generator.
  void forward(at::Tensor& s, at::Tensor& z, const at::Tensor& token_mask,
               const at::Tensor& pair_mask, const at::Generator& dropout);

 private:
  bool checkpointing_;
  double dropout_;
  std::vector<PairformerBlock> blocks_;
};
TORCH_MODULE(PairformerStack);

}  // namespace megafold::model
