// How the CUDA path for short keys deals rows out and where the parts of dBias go, for many shapes.
// Needs no GPU.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "backends/cuda/short_keys/evo_attention_plan.h"

namespace megafold::cuda {
namespace {

TEST(ShortKeysPlan, EveryRowHasOneTeam) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const std::int64_t grain = 1 + static_cast<std::int64_t>(random() % 50);
    const std::int64_t rows = grain * (1 + static_cast<std::int64_t>(random() % 300));
    const RowRanges ranges =
        DealRows(rows, grain, 1 + static_cast<int>(random() % 20), 1 + random() % 600);
    ASSERT_EQ(ranges.Begin(0), 0);
    ASSERT_EQ(ranges.End(ranges.teams - 1), rows);
    std::int64_t shortest = rows;
    std::int64_t longest = 0;
    for (std::int64_t team = 0; team < ranges.teams; ++team) {
      const std::int64_t count = ranges.End(team) - ranges.Begin(team);
      ASSERT_GT(count, 0);
      ASSERT_EQ(ranges.Begin(team) % grain, 0);
      ASSERT_EQ(ranges.TeamOf(ranges.Begin(team)), team);
      ASSERT_EQ(ranges.TeamOf(ranges.End(team) - 1), team);
      shortest = std::min(shortest, count);
      longest = std::max(longest, count);
    }
    ASSERT_LE(longest - shortest, grain);
  }
}

// Walks the ranges as the backward does and collects the parts as the sum does.
TEST(ShortKeysPlan, PartsOfAGroupAreApartAndFound) {
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    const std::int64_t group_rows = 1 + static_cast<std::int64_t>(random() % 60);
    const std::int64_t groups = 1 + static_cast<std::int64_t>(random() % 120);
    const RowRanges ranges = DealRows(group_rows * groups, 1, 1, 1 + random() % 100);
    std::set<std::pair<std::int64_t, std::int64_t>> written;  // (slot, group)
    std::set<std::int64_t> slots, whole;
    for (std::int64_t team = 0; team < ranges.teams; ++team) {
      for (std::int64_t group = ranges.Begin(team) / group_rows;
           group * group_rows < ranges.End(team); ++group) {
        if (IsWholeGroup(ranges.Begin(team), ranges.End(team), group_rows, group)) {
          ASSERT_TRUE(whole.insert(group).second);
          continue;
        }
        const std::int64_t slot = PartSlot(team, ranges.Begin(team), group_rows, group);
        ASSERT_LT(slot, 2 * ranges.teams);
        ASSERT_TRUE(slots.insert(slot).second) << "two parts in slot " << slot;
        written.emplace(slot, group);
      }
    }
    std::size_t found = 0;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t first = ranges.TeamOf(group * group_rows);
      const std::int64_t last = ranges.TeamOf((group + 1) * group_rows - 1);
      ASSERT_EQ(first == last, whole.contains(group));
      for (std::int64_t team = first; first < last && team <= last; ++team, ++found) {
        ASSERT_TRUE(
            written.contains({PartSlot(team, ranges.Begin(team), group_rows, group), group}));
      }
    }
    ASSERT_EQ(found, written.size());
  }
}

TEST(ShortKeysPlan, PartsStayBelowTheLimit) {
  // 108 windows of 48 samples with 4 heads: 99 teams share 5,184 rows.
  const RowRanges windows = DealRowsOfBias(108 * 48, 48, 4, 396, 4 * 4 * 32 * 128, 20 << 20);
  EXPECT_EQ(windows.grain, 1);
  EXPECT_EQ(windows.teams, 99);
  // Too little room for parts: groups stay whole.
  const RowRanges whole = DealRowsOfBias(108 * 48, 48, 4, 396, 4 * 4 * 32 * 128, 1 << 20);
  EXPECT_EQ(whole.grain, 48);
  EXPECT_EQ(whole.teams, 99);
  // One row to a bias needs none.
  EXPECT_EQ(DealRowsOfBias(500, 1, 4, 396, 1 << 20, 0).grain, 1);
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    const std::int64_t group_rows = 1 + static_cast<std::int64_t>(random() % 60);
    const std::int64_t part = 1 + static_cast<std::int64_t>(random() % 100000);
    const std::int64_t limit = static_cast<std::int64_t>(random() % 4000000);
    const RowRanges ranges = DealRowsOfBias(group_rows * (1 + random() % 100), group_rows,
                                            1 + random() % 16, 396, part, limit);
    ASSERT_GE(ranges.teams, 1);
    if (ranges.grain != group_rows) {
      ASSERT_LE(2 * ranges.teams * part, limit);
    }
  }
}

}  // namespace
}  // namespace megafold::cuda
