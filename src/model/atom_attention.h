// Attention over atoms within windows: AtomAttentionEncoder (Algorithm 5), AtomAttentionDecoder
// (Algorithm 6) and AtomTransformer (Algorithm 7) of the AlphaFold 3 supplement.
//
// B batch, S diffusion samples (1 in the input embedder), N tokens, A' atoms padded to whole
// windows, W windows of 32 queries and 128 keys. What does not depend on the noised positions is
// computed and kept once for all samples.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "model/atom_layout.h"
#include "model/config.h"
#include "model/diffusion_transformer.h"
#include "model/features.h"

namespace megafold::model {

// The conditioning that all samples share.
struct AtomContext {
  at::Tensor c;  // [B, 1, A', c_atom]
  at::Tensor p;  // [B, W, queries, keys, c_atompair]
};

struct AtomEncoding {
  at::Tensor tokens;  // [B, S, N, c_token]
  at::Tensor q;       // [B, S, A', c_atom], the decoder's skip connection
};

// Algorithm 7: DiffusionTransformer blocks whose attention sees the windows of the layout alone.
class AtomTransformerImpl : public torch::nn::Module {
 public:
  explicit AtomTransformerImpl(const ModelConfig& config);
  // q [B, S, A', c_atom] -> the same shape.
  at::Tensor forward(const at::Tensor& q, const AtomContext& context, const AtomLayout& layout);

 private:
  DiffusionTransformer transformer_{nullptr};
};
TORCH_MODULE(AtomTransformer);

// Algorithm 5. With `noised` it has the inputs of the diffusion module (trunk representations,
// noised positions); without, it is the input embedder's.
class AtomAttentionEncoderImpl : public torch::nn::Module {
 public:
  AtomAttentionEncoderImpl(const ModelConfig& config, std::int64_t c_token, bool noised);

  // Lines 1 to 14 but for the noised positions. Reads the ref_* features. s_trunk [B, N, c_s] and z
  // [B, N, N, c_z] are defined exactly when the encoder was made with `noised`.
  AtomContext Prepare(const Features& features, const AtomLayout& layout,
                      const at::Tensor& s_trunk = {}, const at::Tensor& z = {});
  // The rest. r [B, S, A, 3]: positions scaled to unit variance; undefined without `noised` (S is
  // then 1).
  AtomEncoding forward(const AtomContext& context, const AtomLayout& layout,
                       const at::Tensor& r = {});

 private:
  at::Tensor AtomFeatures(const Features& features, const AtomLayout& layout);
  at::Tensor PairFeatures(const Features& features, const AtomLayout& layout);

  bool noised_;
  Linear linear_features_{nullptr}, linear_pairs_{nullptr};
  LayerNormLinear trunk_single_{nullptr}, trunk_pair_{nullptr};
  Linear linear_r_{nullptr};
  Linear linear_query_{nullptr}, linear_key_{nullptr};
  Linear linear_p1_{nullptr}, linear_p2_{nullptr}, linear_p3_{nullptr};
  AtomTransformer transformer_{nullptr};
  Linear linear_tokens_{nullptr};
};
TORCH_MODULE(AtomAttentionEncoder);

// Algorithm 6.
class AtomAttentionDecoderImpl : public torch::nn::Module {
 public:
  AtomAttentionDecoderImpl(const ModelConfig& config, std::int64_t c_token);
  // tokens [B, S, N, c_token], q_skip [B, S, A', c_atom] -> position updates [B, S, A, 3] float32.
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& q_skip, const AtomContext& context,
                     const AtomLayout& layout);

 private:
  Linear linear_tokens_{nullptr};
  AtomTransformer transformer_{nullptr};
  LayerNorm norm_{nullptr};
  Linear linear_out_{nullptr};
};
TORCH_MODULE(AtomAttentionDecoder);

}  // namespace megafold::model
