// How atoms lie in tokens and in windows, prepared once per batch.
//
// The atom sequence is cut into W windows of `queries` atoms (32), its length padded to A' = W
// queries. Window w's keys are the `keys` atoms (128) centred on its queries; where they reach past
// either end they are masked. Nothing here or in the modules that use it has the size A x A.
// Gathers and sums are those of row_gather.h: repeatable bit for bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/config.h"
#include "model/features.h"

namespace megafold::model {

class AtomLayout {
 public:
  // Reads token_mask, atom_mask and atom_to_token. Throws megafold::Error (kInvalidArgument) for
  // windows that are not even or whose keys are fewer than their queries.
  AtomLayout(const Features& features, const AtomConfig& config);

  std::int64_t batch() const { return batch_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t atoms() const { return atoms_; }                // A, as the features have it
  std::int64_t padded() const { return windows_ * queries_; }  // A'
  std::int64_t windows() const { return windows_; }
  std::int64_t queries() const { return queries_; }
  std::int64_t keys() const { return keys_; }

  // [B, A', ...] from a feature [B, A, ...], zeros appended.
  at::Tensor Pad(const at::Tensor& feature) const;
  // [B, A'] bool, false for padding.
  const at::Tensor& mask() const { return mask_; }
  // [B, N] bool, false for padding.
  const at::Tensor& token_mask() const { return token_mask_; }
  // [B W, 1, 1, 1, keys] bool: which keys of a window exist; Attention's mask.
  const at::Tensor& key_mask() const { return key_mask_; }

  // x [B, S, A', ...] as windows: [B W, S, queries, ...] and, overlapping, [B W, S, keys, ...] with
  // zeros past the ends. Views of x and of x padded where B = 1.
  at::Tensor Queries(const at::Tensor& x) const;
  at::Tensor Keys(const at::Tensor& x) const;
  // Undoes Queries: [B, S, A', ...] from [B W, S, queries, ...].
  at::Tensor FromQueries(const at::Tensor& x) const;

  // Each atom its token's row: [B, S, A', C] from x [B, S, N, C]; zeros for padding.
  at::Tensor TokensToAtoms(const at::Tensor& x) const;
  // The mean over each token's atoms: [B, S, N, C] from x [B, S, A', C]; zeros for a token without
  // atoms.
  at::Tensor MeanOverAtoms(const at::Tensor& x) const;
  // Each (query, key) of a window its token pair's row: [B, W, queries, keys, C] from z [B, N, N,
  // C]. Meaningless where the query or the key does not exist.
  at::Tensor TokenPairsToWindows(const at::Tensor& z) const;

 private:
  // Row of each atom's token among the rows of [B, samples, N, C], flattened.
  at::Tensor TokenRows(std::int64_t samples) const;

  std::int64_t batch_ = 0, tokens_ = 0, atoms_ = 0, windows_ = 0, queries_ = 0, keys_ = 0;
  at::Tensor mask_, token_mask_, key_mask_;
  at::Tensor token_of_atom_;   // [B, A'] int64, 0 for padding
  at::Tensor atoms_of_token_;  // [B, 1, N, 1] float32, at least 1
  at::Tensor pair_rows_;  // [B W queries keys] int64: the token pair among the rows of [B, N, N, C]
};

}  // namespace megafold::model
