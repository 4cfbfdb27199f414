#include "model/diffusion_transformer.h"

#include <torch/nn/modules/container/modulelist.h>

#include "model/checkpoint.h"

namespace megafold::model {

namespace {

// A gate that starts nearly closed, so that a deep stack starts near the identity.
LinearOptions ClosedGate() { return {.init = Init::kGating, .bias = true, .bias_value = -2}; }

}  // namespace

ConditionedTransitionImpl::ConditionedTransitionImpl(Ops ops, std::int64_t c_a, std::int64_t c_s,
                                                     std::int64_t expansion)
    : hidden_(expansion * c_a) {
  norm_ = register_module("norm", AdaptiveLayerNorm(ops, c_a, c_s));
  linear_a_ = register_module("linear_a", Linear(c_a, hidden_, LinearOptions{.init = Init::kHe}));
  linear_b_ = register_module("linear_b", Linear(c_a, hidden_));
  linear_out_ = register_module("linear_out", Linear(hidden_, c_a));
  linear_s_ = register_module("linear_s", Linear(c_s, c_a, ClosedGate()));
}

at::Tensor ConditionedTransitionImpl::forward(const at::Tensor& a, const at::Tensor& s) {
  const at::Tensor normed = norm_(a, s);
  const at::Tensor hidden = at::silu(linear_a_(normed)) * linear_b_(normed);
  return at::sigmoid(linear_s_(s)) * linear_out_(hidden);
}

DiffusionTransformerBlockImpl::DiffusionTransformerBlockImpl(
    Ops ops, const DiffusionTransformerOptions& options)
    : ops_(ops) {
  const AttentionPairBiasOptions attention{
      .c_a = options.c_a, .c_z = options.c_z, .heads = options.heads, .c_s = options.c_s};
  attention_ = register_module("attention", AttentionPairBias(ops, attention));
  transition_ = register_module(
      "transition", ConditionedTransition(ops, options.c_a, options.c_s, options.expansion));
}

at::Tensor DiffusionTransformerBlockImpl::forward(const at::Tensor& a, const at::Tensor& s,
                                                  const at::Tensor& z, const AtomLayout& layout,
                                                  bool windowed) {
  const at::Tensor attended =
      a + (windowed ? WindowAttention(a, s, z, layout) : attention_(a, s, z, layout.token_mask()));
  return attended + transition_(attended, s);
}

at::Tensor DiffusionTransformerBlockImpl::WindowAttention(const at::Tensor& a, const at::Tensor& s,
                                                          const at::Tensor& z,
                                                          const AtomLayout& layout) {
  const auto parts = attention_->Project(a, s);
  const at::Tensor attended =
      Attention(ops_, layout.Queries(parts.q), layout.Keys(parts.k), layout.Keys(parts.v),
                layout.key_mask(), attention_->PairBias(z.flatten(0, 1)));
  return attention_->Finish(layout.FromQueries(attended), parts.gate, s);
}

DiffusionTransformerImpl::DiffusionTransformerImpl(Ops ops,
                                                   const DiffusionTransformerOptions& options)
    : checkpointing_(options.checkpointing) {
  torch::nn::ModuleList list;
  for (std::int64_t i = 0; i < options.blocks; ++i) {
    blocks_.emplace_back(ops, options);
    list->push_back(blocks_.back());
  }
  register_module("blocks", list);
}

at::Tensor DiffusionTransformerImpl::forward(const at::Tensor& a, const at::Tensor& s,
                                             const at::Tensor& z, const AtomLayout& layout) {
  return Run(a, s, z, layout, /*windowed=*/false);
}

at::Tensor DiffusionTransformerImpl::ForwardWindows(const at::Tensor& a, const at::Tensor& s,
                                                    const at::Tensor& z, const AtomLayout& layout) {
  return Run(a, s, z, layout, /*windowed=*/true);
}

at::Tensor DiffusionTransformerImpl::Run(at::Tensor a, const at::Tensor& s, const at::Tensor& z,
                                         const AtomLayout& layout, bool windowed) {
  for (DiffusionTransformerBlock& block : blocks_) {
    const BlockFunction run = [block, layout, windowed](const Tensors& inputs) mutable {
      return Tensors{block(inputs[0], inputs[1], inputs[2], layout, windowed)};
    };
    a = Checkpoint(checkpointing_, run, {a, s, z}, block->parameters())[0];
  }
  return a;
}

}  // namespace megafold::model
