// The layers that the modules of AlphaFold 3 share. Each holds one set of parameters and computes
// with plain PyTorch operators or with the fused ones, as its `ops` says.
//
// Letters: B batch, S samples or alignment rows, N tokens or atoms, H heads, D width of a head.
// Masks are bool, true for what exists. An optional tensor may be undefined.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "model/config.h"
#include "model/linear.h"

namespace megafold::model {

// ---- Pieces without parameters ----

// The logit of a key that does not exist: far below any other, within float16's range, and finite,
// so that a query without keys is no NaN.
constexpr double kMasked = -3e4;

// softmax(q k^T / sqrt(D) + bias + mask) v: q, k, v [B, S, N, H, D] (any strides but the last; the
// lengths of q and k may differ), mask optional [B or 1, S or 1, 1, 1, Nk], bias optional [B or 1,
// 1, H, Nq, Nk]. Returns [B, S, Nq, H, D]. The row of a query without any key is finite and means
// nothing.
at::Tensor Attention(Ops ops, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& mask, const at::Tensor& bias);

// LayerNorm and then x weight^T + bias, for layers that normalise once and project several times.
// bias is optional.
at::Tensor NormThenLinear(Ops ops, LayerNorm norm, const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& bias = {});

// 0 or 1 / (1 - p), of one value along each dimension whose size in `shape` is 1. Undefined
// (nothing is dropped) when the generator is, or when p is 0.
at::Tensor DropoutMask(at::IntArrayRef shape, double p, const at::Generator& generator,
                       const at::TensorOptions& options);

// x + mask * update; the mask broadcasts and is optional.
at::Tensor AddDropped(const at::Tensor& x, const at::Tensor& update, const at::Tensor& mask);

// ---- Layers ----

class LayerNormLinearImpl : public torch::nn::Module {
 public:
  LayerNormLinearImpl(Ops ops, std::int64_t in, std::int64_t out,
                      const LinearOptions& options = {});
  at::Tensor forward(const at::Tensor& x);  // [..., in] -> [..., out]

 private:
  Ops ops_;
  LayerNorm norm_{nullptr};
  Linear linear_{nullptr};
};
TORCH_MODULE(LayerNormLinear);

// Algorithm 11: SwiGLU.
class TransitionImpl : public torch::nn::Module {
 public:
  TransitionImpl(Ops ops, std::int64_t width, std::int64_t expansion);
  at::Tensor forward(const at::Tensor& x);  // [..., width] -> the same

 private:
  Ops ops_;
  LayerNorm norm_{nullptr};
  Linear linear_a_{nullptr}, linear_b_{nullptr}, linear_out_{nullptr};
};
TORCH_MODULE(Transition);

// Algorithms 12 and 13.
class TriangleMultiplicationImpl : public torch::nn::Module {
 public:
  TriangleMultiplicationImpl(Ops ops, std::int64_t c_z, std::int64_t hidden, bool outgoing);
  // z [B, N, N, c_z], mask [B, N, N] -> [B, N, N, c_z]
  at::Tensor forward(const at::Tensor& z, const at::Tensor& mask);

 private:
  Ops ops_;
  bool outgoing_;
  LayerNorm norm_in_{nullptr}, norm_out_{nullptr};
  Linear linear_a_p_{nullptr}, linear_a_g_{nullptr}, linear_b_p_{nullptr}, linear_b_g_{nullptr};
  Linear linear_z_{nullptr}, linear_g_{nullptr};
};
TORCH_MODULE(TriangleMultiplication);

enum class TriangleNode { kStarting, kEnding };

// Algorithms 14 and 15. The ending node attends through strided views: the pair representation is
// never transposed.
class TriangleAttentionImpl : public torch::nn::Module {
 public:
  TriangleAttentionImpl(Ops ops, std::int64_t c_z, std::int64_t heads, TriangleNode node);
  // z [B, N, N, c_z], mask [B, N, N] -> [B, N, N, c_z]
  at::Tensor forward(const at::Tensor& z, const at::Tensor& mask);

 private:
  Ops ops_;
  std::int64_t heads_;
  TriangleNode node_;
  LayerNorm norm_{nullptr};
  Linear linear_q_{nullptr}, linear_k_{nullptr}, linear_v_{nullptr}, linear_bias_{nullptr};
  Linear linear_g_{nullptr}, linear_out_{nullptr};
};
TORCH_MODULE(TriangleAttention);

// Algorithm 26: LayerNorm of `a` whose scale and offset come from the conditioning `s`.
class AdaptiveLayerNormImpl : public torch::nn::Module {
 public:
  AdaptiveLayerNormImpl(Ops ops, std::int64_t c_a, std::int64_t c_s);
  at::Tensor forward(const at::Tensor& a,
                     const at::Tensor& s);  // [..., c_a], [..., c_s] -> [..., c_a]

 private:
  Ops ops_;
  std::int64_t c_a_;
  LayerNorm norm_a_{nullptr}, norm_s_{nullptr};
  Linear linear_gamma_{nullptr}, linear_beta_{nullptr};
};
TORCH_MODULE(AdaptiveLayerNorm);

struct AttentionPairBiasOptions {
  std::int64_t c_a = 0;
  std::int64_t c_z = 0;
  std::int64_t heads = 0;
  std::int64_t c_s = 0;  // 0: plain LayerNorm and no output gate from s
};

// Algorithm 24: attention over tokens or atoms with a bias from the pair representation,
// conditioned on s if c_s > 0. forward is full attention. Attention in windows takes the pieces:
// Project, cut the parts into windows (views, with the windows in the batch dimension so that each
// has its own bias), PairBias of the windows, Attention, Finish.
class AttentionPairBiasImpl : public torch::nn::Module {
 public:
  struct Parts {
    at::Tensor q, k, v;  // [B, S, N, H, D]
    at::Tensor gate;     // [B, S, N, H * D], before the sigmoid
  };

  AttentionPairBiasImpl(Ops ops, const AttentionPairBiasOptions& options);
  // a [B, S, N, c_a] (S samples share z), s [B, S or 1, N, c_s] or undefined, z [B, N, N, c_z],
  // mask [B, N] or undefined
  // -> [B, S, N, c_a]
  at::Tensor forward(const at::Tensor& a, const at::Tensor& s, const at::Tensor& z,
                     const at::Tensor& mask);

  Parts Project(const at::Tensor& a, const at::Tensor& s);
  // [B, Nq, Nk, c_z] -> [B, 1, H, Nq, Nk]
  at::Tensor PairBias(const at::Tensor& z);
  // attended [B, S, N, H, D], gate [B, S, N, H * D] -> [B, S, N, c_a]
  at::Tensor Finish(const at::Tensor& attended, const at::Tensor& gate, const at::Tensor& s);

 private:
  Ops ops_;
  AttentionPairBiasOptions options_;
  LayerNorm norm_a_{nullptr}, norm_z_{nullptr};
  AdaptiveLayerNorm adaptive_norm_a_{nullptr};
  Linear linear_q_{nullptr}, linear_k_{nullptr}, linear_v_{nullptr}, linear_z_{nullptr};
  Linear linear_g_{nullptr}, linear_out_{nullptr}, linear_s_{nullptr};
};
TORCH_MODULE(AttentionPairBias);

// Algorithm 9. m [B, S, N, c_m], mask [B, S, N] -> [B, N, N, c_z]
class OuterProductMeanImpl : public torch::nn::Module {
 public:
  OuterProductMeanImpl(Ops ops, std::int64_t c_m, std::int64_t c_z, std::int64_t hidden);
  at::Tensor forward(const at::Tensor& m, const at::Tensor& mask);

 private:
  Ops ops_;
  std::int64_t hidden_;
  LayerNorm norm_{nullptr};
  Linear linear_a_{nullptr}, linear_b_{nullptr}, linear_out_{nullptr};
};
TORCH_MODULE(OuterProductMean);

// Algorithm 10. m [B, S, N, c_m], z [B, N, N, c_z], mask [B, N, N] -> [B, S, N, c_m]
class MsaPairWeightedAveragingImpl : public torch::nn::Module {
 public:
  MsaPairWeightedAveragingImpl(Ops ops, std::int64_t c_m, std::int64_t c_z, std::int64_t heads,
                               std::int64_t head_width);
  at::Tensor forward(const at::Tensor& m, const at::Tensor& z, const at::Tensor& mask);

 private:
  Ops ops_;
  std::int64_t heads_, head_width_;
  LayerNorm norm_m_{nullptr}, norm_z_{nullptr};
  Linear linear_v_{nullptr}, linear_z_{nullptr}, linear_g_{nullptr}, linear_out_{nullptr};
};
TORCH_MODULE(MsaPairWeightedAveraging);

}  // namespace megafold::model
