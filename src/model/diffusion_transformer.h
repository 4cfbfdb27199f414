// DiffusionTransformer (Algorithm 23): attention with pair bias and a gated transition, both
// conditioned on s. Over tokens it is the trunk of the diffusion module; over windows of atoms it
// is the AtomTransformer.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <vector>

#include "model/atom_layout.h"
#include "model/config.h"
#include "model/layers.h"

namespace megafold::model {

// Algorithm 25: sigmoid(Linear(s)) * SwiGLU(AdaLN(a, s)). a [B, S, N, c_a], s [B, S or 1, N, c_s]
// -> as a.
class ConditionedTransitionImpl : public torch::nn::Module {
 public:
  ConditionedTransitionImpl(Ops ops, std::int64_t c_a, std::int64_t c_s, std::int64_t expansion);
  at::Tensor forward(const at::Tensor& a, const at::Tensor& s);

 private:
  std::int64_t hidden_;
  AdaptiveLayerNorm norm_{nullptr};
  Linear linear_a_{nullptr}, linear_b_{nullptr}, linear_out_{nullptr}, linear_s_{nullptr};
};
TORCH_MODULE(ConditionedTransition);

struct DiffusionTransformerOptions {
  std::int64_t c_a = 0;
  std::int64_t c_s = 0;
  std::int64_t c_z = 0;
  std::int64_t heads = 0;
  std::int64_t blocks = 0;
  std::int64_t expansion = 2;
  bool checkpointing = false;
};

class DiffusionTransformerBlockImpl : public torch::nn::Module {
 public:
  DiffusionTransformerBlockImpl(Ops ops, const DiffusionTransformerOptions& options);
  // Tokens: z [B, N, N, c_z], layout's token mask. Atoms (`windowed`): z [B, W, queries, keys,
  // c_z].
  at::Tensor forward(const at::Tensor& a, const at::Tensor& s, const at::Tensor& z,
                     const AtomLayout& layout, bool windowed);

 private:
  at::Tensor WindowAttention(const at::Tensor& a, const at::Tensor& s, const at::Tensor& z,
                             const AtomLayout& layout);

  Ops ops_;
  AttentionPairBias attention_{nullptr};
  ConditionedTransition transition_{nullptr};
};
TORCH_MODULE(DiffusionTransformerBlock);

class DiffusionTransformerImpl : public torch::nn::Module {
 public:
  DiffusionTransformerImpl(Ops ops, const DiffusionTransformerOptions& options);
  // a [B, S, N, c_a], s [B, S or 1, N, c_s], z [B, N, N, c_z], one for all samples -> as a.
  at::Tensor forward(const at::Tensor& a, const at::Tensor& s, const at::Tensor& z,
                     const AtomLayout& layout);
  // a [B, S, A', c_a], s [B, S or 1, A', c_s], z [B, W, queries, keys, c_z] -> as a; each query
  // sees its window's keys.
  at::Tensor ForwardWindows(const at::Tensor& a, const at::Tensor& s, const at::Tensor& z,
                            const AtomLayout& layout);

 private:
  at::Tensor Run(at::Tensor a, const at::Tensor& s, const at::Tensor& z, const AtomLayout& layout,
                 bool windowed);

  bool checkpointing_;
  std::vector<DiffusionTransformerBlock> blocks_;
};
TORCH_MODULE(DiffusionTransformer);

}  // namespace megafold::model
