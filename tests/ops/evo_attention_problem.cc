#include "tests/ops/evo_attention_problem.h"

#include <cmath>
#include <utility>

#include "megafold/ops/evo_attention.h"

namespace megafold::test {
namespace {

void SwapDimensions(TensorView& view, std::size_t a, std::size_t b) {
  std::swap(view.sizes[a], view.sizes[b]);
  std::swap(view.strides[a], view.strides[b]);
}

std::int64_t Or(const Case& c, const char* name, std::int64_t fallback) {
  return c.sizes.contains(name) ? c[name] : fallback;
}

}  // namespace

EvoAttention::EvoAttention(const Case& c)
    : batch(c["B"]),
      rows(c["S"]),
      queries(c["Nq"]),
      keys(c["Nk"]),
      heads(c["H"]),
      dim(c["D"]),
      mask(static_cast<Mask>(c["mask"])),
      bias(static_cast<Bias>(c["bias"])),
      ending_node(Or(c, "ending", 0) != 0) {}

Shape EvoAttention::Stored(std::int64_t positions) const {
  if (ending_node) return {batch, positions, rows, heads, dim};
  return {batch, rows, positions, heads, dim};
}

std::vector<Input> EvoAttention::Inputs() const {
  std::vector<Input> inputs{{.name = "q", .shape = Stored(queries)},
                            {.name = "k", .shape = Stored(keys)},
                            {.name = "v", .shape = Stored(keys)}};
  if (mask != Mask::kNone) {
    const bool shared = mask == Mask::kSharedBool || mask == Mask::kSharedAdditiveWide;
    Input input{.name = "mask", .shape = {batch, rows, 1, 1, keys}, .differentiable = false};
    if (shared) input.shape[0] = input.shape[1] = 1;
    input.is_mask = true;
    input.additive = mask == Mask::kAdditive || mask == Mask::kSharedAdditiveWide;
    input.wide = mask == Mask::kSharedAdditiveWide;
    inputs.push_back(input);
  }
  if (bias != Bias::kNone) {
    const std::int64_t copies = bias == Bias::kShared ? 1 : batch;
    Input input{.name = "bias", .shape = {copies, 1, heads, queries, keys}};
    if (bias_heads_last) input.shape = {copies, queries, keys, heads};
    input.differentiable = differentiable_bias;
    input.wide = wide_bias;
    input.wide_gradient = true;
    inputs.push_back(input);
  }
  return inputs;
}

std::vector<Output> EvoAttention::Outputs() const {
  return {{"y", Stored(queries)}, {"lse", {batch, rows, heads, queries}, true}};
}

TensorView EvoAttention::View(const Operands& operands, const char* name) const {
  TensorView view = Find(operands, name);
  if (view.defined() && ending_node) SwapDimensions(view, 1, 2);
  return view;
}

TensorView EvoAttention::BiasView(const Operands& operands) const {
  TensorView view = Find(operands, "bias");
  if (!view.defined() || !bias_heads_last) return view;
  const TensorView stored = view;
  view.rank = 5;
  view.sizes = {stored.size(0), 1, stored.size(3), stored.size(1), stored.size(2)};
  view.strides = {stored.stride(0), 0, stored.stride(3), stored.stride(1), stored.stride(2)};
  return view;
}

void EvoAttention::Forward(const Operands& t) const {
  const ops::EvoAttentionForwardArgs args{.q = View(t, "q"),
                                          .k = View(t, "k"),
                                          .v = View(t, "v"),
                                          .mask = Find(t, "mask"),
                                          .bias = BiasView(t),
                                          .scale = 1 / std::sqrt(static_cast<float>(dim)),
                                          .out = View(t, "y"),
                                          .lse = Find(t, "lse")};
  const Scratch scratch(ops::EvoAttentionForwardWorkspace(args));
  ops::EvoAttentionForward(args, {scratch.data(), scratch.bytes()}, {});
}

void EvoAttention::Backward(const Operands& t) const {
  TensorView dbias = Find(t, "dbias");
  if (dbias.defined()) {  // contiguous whatever the layout of bias
    dbias = MakeView(dbias.data, dbias.dtype, {dbias.size(0), 1, heads, queries, keys});
  }
  const ops::EvoAttentionBackwardArgs args{.q = View(t, "q"),
                                           .k = View(t, "k"),
                                           .v = View(t, "v"),
                                           .mask = Find(t, "mask"),
                                           .bias = BiasView(t),
                                           .scale = 1 / std::sqrt(static_cast<float>(dim)),
                                           .out = View(t, "y"),
                                           .lse = Find(t, "lse"),
                                           .dout = View(t, "dy"),
                                           .dq = View(t, "dq"),
                                           .dk = View(t, "dk"),
                                           .dv = View(t, "dv"),
                                           .dbias = dbias};
  const Scratch scratch(ops::EvoAttentionBackwardWorkspace(args));
  ops::EvoAttentionBackward(args, {scratch.data(), scratch.bytes()}, {});
}

}  // namespace megafold::test
