// How the rows of an EvoAttention problem with short keys are dealt out to blocks, and where each
// block leaves its part of dBias. Depends on the shape alone, so results do not change with the
// device.
#pragma once

#include <algorithm>
#include <cstdint>

namespace megafold::cuda {

inline constexpr int kShortKeys = 128;  // keys of a row that a block holds

// Rows 0 .. rows - 1 in the order of memory, cut into ranges that differ by at most one grain. A
// team is one block for each head; its blocks take the same range, so that vectors which lie side
// by side are asked for at the same time.
struct RowRanges {
  std::int64_t rows = 0;   // of all batches
  std::int64_t grain = 1;  // rows that stay together
  std::int64_t teams = 1;

  constexpr std::int64_t Begin(std::int64_t team) const {
    return rows / grain * team / teams * grain;
  }
  constexpr std::int64_t End(std::int64_t team) const { return Begin(team + 1); }
  // The team whose range holds `row`.
  constexpr std::int64_t TeamOf(std::int64_t row) const {
    std::int64_t team = row / grain * teams / (rows / grain);
    while (End(team) <= row) ++team;
    while (Begin(team) > row) --team;
    return team;
  }
};

// The ranges for about `blocks` blocks.
constexpr RowRanges DealRows(std::int64_t rows, std::int64_t grain, int heads,
                             std::int64_t blocks) {
  const std::int64_t wanted = std::max<std::int64_t>(1, blocks / std::max(1, heads));
  return {rows, grain, std::clamp<std::int64_t>(rows / grain, 1, wanted)};
}

// dBias of a group of rows comes in parts where the group's rows went to more than one team. A team
// has at most two such groups: the one in which its range begins and the one in which it ends.
constexpr bool IsWholeGroup(std::int64_t begin, std::int64_t end, std::int64_t group_rows,
                            std::int64_t group) {
  return begin <= group * group_rows && (group + 1) * group_rows <= end;
}
constexpr std::int64_t PartSlot(std::int64_t team, std::int64_t begin, std::int64_t group_rows,
                                std::int64_t group) {
  return team * 2 + (begin > group * group_rows ? 0 : 1);
}

// Ranges for a gradient of bias: the parts (2 for a team, `part_bytes` each) stay below
// `limit_bytes`, else groups are not divided at all.
constexpr RowRanges DealRowsOfBias(std::int64_t rows, std::int64_t group_rows, int heads,
                                   std::int64_t blocks, std::int64_t part_bytes,
                                   std::int64_t limit_bytes) {
  if (group_rows == 1) return DealRows(rows, 1, heads, blocks);
  const RowRanges whole = DealRows(rows, group_rows, heads, blocks);
  RowRanges divided = DealRows(rows, 1, heads, blocks);
  divided.teams = std::min(divided.teams, limit_bytes / std::max<std::int64_t>(1, 2 * part_bytes));
  return divided.teams > whole.teams || (divided.teams == whole.teams && whole.teams > 1) ? divided
                                                                                          : whole;
}

}  // namespace megafold::cuda
