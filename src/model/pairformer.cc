#include "model/pairformer.h"

#include <torch/nn/modules/container/modulelist.h>

#include "model/checkpoint.h"

namespace megafold::model {

PairDropout DrawPairDropout(const at::Tensor& z, double p, const at::Generator& generator) {
  const std::int64_t batch = z.size(0);
  const std::int64_t tokens = z.size(1);
  const std::int64_t width = z.size(3);
  const auto shared_by_rows = [&] {
    return DropoutMask({batch, 1, tokens, width}, p, generator, z.options());
  };
  PairDropout dropout;
  dropout.multiplication_outgoing = shared_by_rows();
  dropout.multiplication_incoming = shared_by_rows();
  dropout.attention_starting = shared_by_rows();
  dropout.attention_ending = DropoutMask({batch, tokens, 1, width}, p, generator, z.options());
  return dropout;
}

PairStackImpl::PairStackImpl(Ops ops, const PairStackOptions& options) {
  const std::int64_t width = options.width;
  const std::int64_t heads = options.heads;
  tri_mul_out_ = register_module("tri_mul_out", TriangleMultiplication(ops, width, width, true));
  tri_mul_in_ = register_module("tri_mul_in", TriangleMultiplication(ops, width, width, false));
  tri_att_start_ = register_module("tri_att_start",
                                   TriangleAttention(ops, width, heads, TriangleNode::kStarting));
  tri_att_end_ =
      register_module("tri_att_end", TriangleAttention(ops, width, heads, TriangleNode::kEnding));
  transition_ = register_module("transition", Transition(ops, width, options.expansion));
}

at::Tensor PairStackImpl::forward(at::Tensor z, const at::Tensor& mask,
                                  const PairDropout& dropout) {
  z = AddDropped(z, tri_mul_out_(z, mask), dropout.multiplication_outgoing);
  z = AddDropped(z, tri_mul_in_(z, mask), dropout.multiplication_incoming);
  z = AddDropped(z, tri_att_start_(z, mask), dropout.attention_starting);
  z = AddDropped(z, tri_att_end_(z, mask), dropout.attention_ending);
  return z + transition_(z);
}

PairformerBlockImpl::PairformerBlockImpl(Ops ops, std::int64_t c_s, std::int64_t c_z,
                                         const PairformerConfig& config) {
  const std::int64_t expansion = config.transition_expansion;
  pair_stack_ = register_module(
      "pair_stack",
      PairStack(
          ops, PairStackOptions{.width = c_z, .heads = config.pair_heads, .expansion = expansion}));
  attention_ = register_module(
      "attention",
      AttentionPairBias(
          ops, AttentionPairBiasOptions{.c_a = c_s, .c_z = c_z, .heads = config.single_heads}));
  transition_ = register_module("transition", Transition(ops, c_s, expansion));
}

void PairformerBlockImpl::forward(at::Tensor& s, at::Tensor& z, const at::Tensor& token_mask,
                                  const at::Tensor& pair_mask, const PairDropout& dropout) {
  z = pair_stack_(z, pair_mask, dropout);
  const at::Tensor attended = attention_(s.unsqueeze(1), at::Tensor(), z, token_mask);
  s = s + attended.squeeze(1);
  s = s + transition_(s);
}

PairformerStackImpl::PairformerStackImpl(const ModelConfig& config)
    : checkpointing_(config.checkpointing), dropout_(config.pairformer.dropout) {
  torch::nn::ModuleList list;
  for (int i = 0; i < config.pairformer.blocks; ++i) {
    blocks_.emplace_back(config.ops, config.c_s, config.c_z, config.pairformer);
    list->push_back(blocks_.back());
  }
  register_module("blocks", list);
}

void PairformerStackImpl::forward(at::Tensor& s, at::Tensor& z, const at::Tensor& token_mask,
                                  const at::Tensor& pair_mask, const at::Generator& generator) {
  for (PairformerBlock& block : blocks_) {
    const PairDropout dropout = DrawPairDropout(z, dropout_, generator);
    const Tensors updated = Checkpoint(
        checkpointing_,
        [block, dropout, token_mask, pair_mask](const Tensors& inputs) mutable {
          at::Tensor single = inputs[0];
          at::Tensor pair = inputs[1];
          block->forward(single, pair, token_mask, pair_mask, dropout);
          return Tensors{single, pair};
        },
        {s, z}, block->parameters());
    s = updated[0];
    z = updated[1];
  }
}

}  // namespace megafold::model
