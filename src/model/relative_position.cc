#include "model/relative_position.h"

namespace megafold::model {

namespace {

// x_i - x_j of x [B, N]: [B, N, N].
at::Tensor Offsets(const at::Tensor& x) { return x.unsqueeze(2) - x.unsqueeze(1); }

// One-hot float32 [B, N, N, 2 limit + 2] of the offset clipped to [-limit, limit], or the last
// class where not `related`.
at::Tensor OffsetClasses(const at::Tensor& x, const at::Tensor& related, std::int64_t limit) {
  const at::Tensor clipped = (Offsets(x) + limit).clamp(0, 2 * limit);
  const at::Tensor classes = clipped.masked_fill(related.logical_not(), 2 * limit + 1);
  const at::Tensor all = at::arange(2 * limit + 2, classes.options());
  return classes.unsqueeze(-1).eq(all).to(at::kFloat);
}

}  // namespace

RelativePositionEncodingImpl::RelativePositionEncodingImpl(const ModelConfig& config)
    : max_residue_(config.relpos_max_residue), max_chain_(config.relpos_max_chain) {
  const std::int64_t width = 2 * (2 * max_residue_ + 2) + 1 + 2 * max_chain_ + 2;
  linear_ = register_module("linear", Linear(width, config.c_z));
}

at::Tensor RelativePositionEncodingImpl::forward(const Features& features) {
  const at::Tensor& residue = Get(features, "residue_index");
  const at::Tensor same_chain = Offsets(Get(features, "asym_id")).eq(0);
  const at::Tensor same_residue = same_chain & Offsets(residue).eq(0);
  const at::Tensor same_entity = Offsets(Get(features, "entity_id")).eq(0);
  return linear_(at::cat({OffsetClasses(residue, same_chain, max_residue_),
                          OffsetClasses(Get(features, "token_index"), same_residue, max_residue_),
                          same_entity.unsqueeze(-1).to(at::kFloat),
                          OffsetClasses(Get(features, "sym_id"), same_entity, max_chain_)},
                         -1));
}

}  // namespace megafold::model
