// Which rows of the chains' alignments stand side by side in the entry's alignment.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/msa/alignment.h"

namespace megafold::data {

inline constexpr std::int32_t kNoRow = -1;

// Row r of the entry takes row At(r, a) of alignment a, or gaps where that is kNoRow.
struct RowPlan {
  std::size_t alignments = 0;
  std::int64_t paired = 0;         // rows 1 .. paired join alignments by species
  std::vector<std::int32_t> rows;  // [rows, alignments]

  std::int64_t size() const {
    return alignments == 0 ? 0 : static_cast<std::int64_t>(rows.size() / alignments);
  }
  std::int32_t At(std::int64_t row, std::size_t alignment) const {
    return rows[static_cast<std::size_t>(row) * alignments + alignment];
  }
};

// Row 0 joins all queries. Then rows of one species, at most half of `max_rows`: species that more
// alignments have come first, among these the one whose row stands higher; within a species the
// n-th most similar row to each query go together. The rest is block-diagonal: the alignments take
// turns, each with its next row and gaps elsewhere, up to `max_rows`.
RowPlan PlanRows(std::span<const Alignment* const> alignments, std::int64_t max_rows);

}  // namespace megafold::data
