// MsaModule (Algorithm 8). The data pipeline has sampled the alignment's rows.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <vector>

#include "model/config.h"
#include "model/features.h"
#include "model/layers.h"
#include "model/pairformer.h"

namespace megafold::model {

class MsaBlockImpl : public torch::nn::Module {
 public:
  // The last block's alignment is read by nobody: it has no update of it.
  MsaBlockImpl(Ops ops, std::int64_t c_z, const MsaConfig& config, std::int64_t pair_heads,
               bool last);
  // m [B, M, N, c_m], z [B, N, N, c_z], msa_mask [B, M, N], pair_mask [B, N, N]; msa_dropout [B, 1,
  // N, c_m] or undefined.
  void forward(at::Tensor& m, at::Tensor& z, const at::Tensor& msa_mask,
               const at::Tensor& pair_mask, const at::Tensor& msa_dropout,
               const PairDropout& pair_dropout);

 private:
  OuterProductMean outer_product_mean_{nullptr};
  MsaPairWeightedAveraging averaging_{nullptr};
  Transition transition_{nullptr};
  PairStack pair_stack_{nullptr};
};
TORCH_MODULE(MsaBlock);

class MsaModuleImpl : public torch::nn::Module {
 public:
  explicit MsaModuleImpl(const ModelConfig& config);
  // Reads msa, msa_deletions, msa_mask; s_inputs [B, N, c_s_inputs], z [B, N, N, c_z] -> z after
  // the module.
  at::Tensor forward(const Features& features, const at::Tensor& s_inputs, at::Tensor z,
                     const at::Tensor& pair_mask, const at::Generator& dropout);

 private:
  bool checkpointing_;
  MsaConfig config_;
  Linear linear_m_{nullptr}, linear_s_{nullptr};
  std::vector<MsaBlock> blocks_;
};
TORCH_MODULE(MsaModule);

}  // namespace megafold::model
