// What EvoAttention's forward and backward share: sizes, the division into work items, and reading
// bias and mask as floats.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backends/cpu/ahead.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"
#include "backends/cpu/softmax_rows.h"
#include "megafold/core/support.h"
#include "megafold/core/tensor_view.h"

namespace megafold::cpu {

// A tile of scores, of which backward holds two, takes about a tenth of a common L2 cache.
inline constexpr std::int64_t kQueryTile = 96;
inline constexpr std::int64_t kKeyTile = 384;

struct AttentionDims {
  std::int64_t batch, rows, queries, keys, heads, dim;
  // A group is the rows of one head that use one plane [Nq, Nk] of bias. Without bias there is one
  // group, the rows of all heads, those of a position next to each other as they lie in memory.
  std::int64_t groups, group_rows;

  template <typename Args>
  static AttentionDims Of(const Args& args) {
    AttentionDims d{args.q.size(0),
                    args.q.size(1),
                    args.q.size(2),
                    args.k.size(2),
                    args.q.size(3),
                    args.q.size(4),
                    1,
                    0};
    if (!args.bias.defined()) {
      d.group_rows = d.batch * d.rows * d.heads;
      return d;
    }
    const bool shared = args.bias.size(0) == 1;
    d.groups = shared ? d.heads : d.batch * d.heads;
    d.group_rows = shared ? d.batch * d.rows : d.rows;
    return d;
  }
  std::int64_t plane() const { return queries * keys; }
  std::int64_t query_tile() const { return std::min(kQueryTile, queries); }
  std::int64_t key_tile() const { return std::min(kKeyTile, keys); }
};

// One row of one head.
struct HeadRow {
  std::int64_t batch, row, head;

  HeadRow(const AttentionDims& dims, std::int64_t group, std::int64_t row_in_group);
  // Its positions of a [B, S, N, H, D] tensor from `first` on.
  StoredRows Of(const TensorView& view, std::int64_t first) const;
  // Its log-sum-exps.
  float* Statistic(const TensorView& lse) const;
};

// The bias plane of a group as floats: in place where it is float32 with unit stride, else a copy
// of the queries in use.
class BiasPlane {
 public:
  BiasPlane(const TensorView& bias, std::int64_t queries, Arena& arena);

  // Makes queries [first, first + count) of a group's plane readable.
  void Load(std::int64_t group, std::int64_t first, std::int64_t count);
  // Terms of the tile that begins at (query, key).
  ScoreTerms Terms(std::int64_t query, std::int64_t key, const float* mask) const;

 private:
  bool InPlace() const;

  TensorView bias_;
  float* copy_ = nullptr;
  const float* data_ = nullptr;  // where query 0 lies or would lie
  std::int64_t stride_ = 0;
};

// The mask of one row as additive floats.
class MaskRow {
 public:
  MaskRow(const TensorView& mask, std::int64_t keys, Arena& arena);

  void Load(const HeadRow& row) const;
  // Terms from key `first` on; null without a mask.
  const float* From(std::int64_t first) const {
    return terms_ == nullptr ? nullptr : terms_ + first;
  }

 private:
  TensorView mask_;
  float* terms_ = nullptr;
};

// scores = q times the columns [first, first + scores.columns) of `keys`, which has a row per
// feature and a column per key, plus the bias where whole vectors of it can be read: products and
// sums are then made while it comes from memory. Returns the terms that are left to add. `soon`, of
// the scores' shape, is asked for meanwhile where no bias is read.
ScoreTerms ScoreTile(Block q, Block keys, std::int64_t first, ScoreTerms terms, Block scores,
                     Ahead& ahead, GemmSoon soon = {});

// How often ScoreTile calls ahead.Step() for so many queries and all keys.
std::int64_t StepsAhead(const AttentionDims& dims, std::int64_t queries);

// Calls body(first, count) for every tile of `total` positions.
template <typename Body>
void ForEachTile(std::int64_t begin, std::int64_t end, std::int64_t tile, Body body) {
  for (std::int64_t first = begin; first < end; first += tile) {
    body(first, std::min(tile, end - first));
  }
}

// `count` rows of a block from `first` on.
inline Block RowRange(Block block, std::int64_t first, std::int64_t count) {
  block.data += first * block.stride;
  block.rows = count;
  return block;
}

// The scores' block for `rows` by `columns` of the room it has.
inline Block Corner(Block block, std::int64_t rows, std::int64_t columns) {
  block.rows = rows;
  block.columns = columns;
  return block;
}

template <typename Args>
Support SupportsAttention(const Args& args) {
  if (args.q.dtype == DType::kFloat64) return Support::No("float64 runs on the reference only");
  return Support::Yes();
}

}  // namespace megafold::cpu
