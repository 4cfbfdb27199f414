#include "model/atom_layout.h"

#include <ATen/ATen.h>

#include <vector>

#include "megafold/core/error.h"
#include "model/row_gather.h"

namespace megafold::model {

namespace {

// The padding list of constant_pad_nd that pads dimension `dim` of a tensor with `rank` dimensions.
std::vector<std::int64_t> PaddingOf(std::int64_t rank, std::int64_t dim, std::int64_t before,
                                    std::int64_t after) {
  std::vector<std::int64_t> padding(2 * (rank - dim), 0);
  padding[padding.size() - 2] = before;
  padding[padding.size() - 1] = after;
  return padding;
}

}  // namespace

AtomLayout::AtomLayout(const Features& features, const AtomConfig& config)
    : queries_(config.window_queries), keys_(config.window_keys) {
  Require(queries_ % 2 == 0 && keys_ % 2 == 0 && keys_ >= queries_, "atom windows of ", queries_,
          " queries and ", keys_, " keys: both must be even, and the keys at least the queries");
  token_mask_ = Get(features, "token_mask").to(at::kBool);
  const at::Tensor& atom_mask = Get(features, "atom_mask");
  batch_ = atom_mask.size(0);
  atoms_ = atom_mask.size(1);
  tokens_ = token_mask_.size(1);
  windows_ = (atoms_ + queries_ - 1) / queries_;
  mask_ = Pad(atom_mask).to(at::kBool);
  token_of_atom_ = Pad(Get(features, "atom_to_token")).to(at::kLong) * mask_;

  const std::int64_t pairs = batch_ * windows_;
  key_mask_ = Keys(mask_.unsqueeze(1)).reshape({pairs, 1, 1, 1, keys_});
  // Whole numbers: exact in any order of addition.
  atoms_of_token_ = at::zeros({batch_, tokens_}, mask_.options().dtype(at::kFloat))
                        .scatter_add_(1, token_of_atom_, mask_.to(at::kFloat))
                        .clamp_min_(1)
                        .view({batch_, 1, tokens_, 1});
  const at::Tensor of_atom = token_of_atom_.unsqueeze(1);
  const at::Tensor query_tokens = Queries(of_atom).reshape({batch_, windows_, queries_, 1});
  const at::Tensor key_tokens = Keys(of_atom).reshape({batch_, windows_, 1, keys_});
  const at::Tensor entry = at::arange(batch_, token_of_atom_.options()).view({batch_, 1, 1, 1});
  pair_rows_ = ((entry * tokens_ + query_tokens) * tokens_ + key_tokens).flatten();
}

at::Tensor AtomLayout::Pad(const at::Tensor& feature) const {
  Require(feature.dim() >= 2 && feature.size(1) == atoms_, "an atom feature has ",
          feature.dim() >= 2 ? feature.size(1) : 0, " atoms, expected ", atoms_);
  const std::int64_t missing = windows_ * queries_ - atoms_;
  if (missing == 0) return feature;
  return at::constant_pad_nd(feature, PaddingOf(feature.dim(), 1, 0, missing));
}

at::Tensor AtomLayout::Queries(const at::Tensor& x) const {
  return x.unflatten(2, {windows_, queries_}).transpose(1, 2).flatten(0, 1);
}

at::Tensor AtomLayout::Keys(const at::Tensor& x) const {
  const std::int64_t reach = (keys_ - queries_) / 2;
  const at::Tensor padded = at::constant_pad_nd(x, PaddingOf(x.dim(), 2, reach, reach));
  // [B, S, W, ..., keys] -> [B, W, S, keys, ...]
  return padded.unfold(2, keys_, queries_).movedim(-1, 3).transpose(1, 2).flatten(0, 1);
}

at::Tensor AtomLayout::FromQueries(const at::Tensor& x) const {
  return x.unflatten(0, {batch_, windows_}).transpose(1, 2).flatten(2, 3);
}

at::Tensor AtomLayout::TokenRows(std::int64_t samples) const {
  const auto options = token_of_atom_.options();
  const at::Tensor first = at::arange(batch_ * samples, options).mul_(tokens_);
  return token_of_atom_.unsqueeze(1) + first.view({batch_, samples, 1});
}

at::Tensor AtomLayout::TokensToAtoms(const at::Tensor& x) const {
  const std::int64_t samples = x.size(1);
  const at::Tensor rows = GatherRows(x.flatten(0, 2), TokenRows(samples).flatten());
  return rows.view({batch_, samples, padded(), x.size(3)}) *
         mask_.view({batch_, 1, padded(), 1}).to(x.scalar_type());
}

at::Tensor AtomLayout::MeanOverAtoms(const at::Tensor& x) const {
  const std::int64_t samples = x.size(1);
  const std::int64_t rows = batch_ * samples * tokens_;
  // Padding goes to a row of its own, which is dropped.
  const at::Tensor index = TokenRows(samples).masked_fill(mask_.logical_not().unsqueeze(1), rows);
  const at::Tensor sums = SumRows(x.flatten(0, 2), index.flatten(), rows + 1).narrow(0, 0, rows);
  return sums.view({batch_, samples, tokens_, x.size(3)}) / atoms_of_token_.to(x.scalar_type());
}

at::Tensor AtomLayout::TokenPairsToWindows(const at::Tensor& z) const {
  return GatherRows(z.flatten(0, 2), pair_rows_)
      .view({batch_, windows_, queries_, keys_, z.size(3)});
}

}  // namespace megafold::model
