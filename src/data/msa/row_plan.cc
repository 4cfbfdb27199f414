#include "data/msa/row_plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <tuple>

namespace megafold::data {
namespace {

std::int64_t IdentityToQuery(const Alignment& alignment, std::int64_t row) {
  const auto query = alignment.Row(0);
  const auto other = alignment.Row(row);
  std::int64_t same = 0;
  for (std::size_t i = 0; i < query.size(); ++i) same += query[i] == other[i] ? 1 : 0;
  return same;
}

// One species: its rows in each alignment, most similar to the query first.
struct SpeciesRows {
  std::vector<std::vector<std::int32_t>> of;  // [alignments]
  std::int64_t alignments_with = 0;
  std::int32_t highest = 0;  // the smallest row number
};

std::map<std::string, SpeciesRows> GroupBySpecies(std::span<const Alignment* const> alignments) {
  std::map<std::string, SpeciesRows> groups;
  for (std::size_t a = 0; a < alignments.size(); ++a) {
    for (std::int64_t row = 1; row < alignments[a]->rows(); ++row) {
      const std::string& name = alignments[a]->species[static_cast<std::size_t>(row)];
      if (name.empty()) continue;
      SpeciesRows& group = groups[name];
      group.of.resize(alignments.size());
      group.of[a].push_back(static_cast<std::int32_t>(row));
    }
  }
  return groups;
}

std::vector<SpeciesRows> PairableSpecies(std::span<const Alignment* const> alignments) {
  std::vector<SpeciesRows> pairable;
  for (auto& [name, group] : GroupBySpecies(alignments)) {
    group.highest = std::numeric_limits<std::int32_t>::max();
    for (std::size_t a = 0; a < alignments.size(); ++a) {
      if (group.of[a].empty()) continue;
      ++group.alignments_with;
      group.highest = std::min(group.highest, group.of[a].front());
    }
    if (group.alignments_with < 2) continue;
    for (std::size_t a = 0; a < alignments.size(); ++a) {
      std::map<std::int32_t, std::int64_t> identity;
      for (const std::int32_t row : group.of[a]) {
        identity[row] = IdentityToQuery(*alignments[a], row);
      }
      std::stable_sort(group.of[a].begin(), group.of[a].end(),
                       [&](std::int32_t x, std::int32_t y) { return identity[x] > identity[y]; });
    }
    pairable.push_back(std::move(group));
  }
  std::stable_sort(pairable.begin(), pairable.end(), [](const auto& x, const auto& y) {
    return std::make_tuple(-x.alignments_with, x.highest) <
           std::make_tuple(-y.alignments_with, y.highest);
  });
  return pairable;
}

class Planner {
 public:
  Planner(std::span<const Alignment* const> alignments, std::int64_t max_rows)
      : alignments_(alignments), max_rows_(max_rows) {
    plan_.alignments = alignments.size();
    for (const Alignment* alignment : alignments) {
      used_.emplace_back(static_cast<std::size_t>(alignment->rows()));
    }
  }

  RowPlan Plan() {
    if (alignments_.empty()) return std::move(plan_);
    plan_.rows.assign(alignments_.size(), 0);
    for (const SpeciesRows& species : PairableSpecies(alignments_)) Pair(species);
    plan_.paired = plan_.size() - 1;
    AddUnpaired();
    return std::move(plan_);
  }

 private:
  void Pair(const SpeciesRows& species) {
    std::size_t count = std::numeric_limits<std::size_t>::max();
    for (const auto& rows : species.of) {
      if (!rows.empty()) count = std::min(count, rows.size());
    }
    for (std::size_t i = 0; i < count && plan_.size() <= max_rows_ / 2; ++i) {
      for (std::size_t a = 0; a < alignments_.size(); ++a) {
        const std::int32_t row = species.of[a].empty() ? kNoRow : species.of[a][i];
        plan_.rows.push_back(row);
        if (row != kNoRow) used_[a][static_cast<std::size_t>(row)] = 1;
      }
    }
  }

  void AddUnpaired() {
    std::vector<std::size_t> next(alignments_.size(), 1);
    for (bool added = true; added && plan_.size() < max_rows_;) {
      added = false;
      for (std::size_t a = 0; a < alignments_.size() && plan_.size() < max_rows_; ++a) {
        while (next[a] < used_[a].size() && used_[a][next[a]] != 0) ++next[a];
        if (next[a] == used_[a].size()) continue;
        plan_.rows.resize(plan_.rows.size() + alignments_.size(), kNoRow);
        plan_.rows[plan_.rows.size() - alignments_.size() + a] =
            static_cast<std::int32_t>(next[a]++);
        added = true;
      }
    }
  }

  std::span<const Alignment* const> alignments_;
  std::int64_t max_rows_;
  RowPlan plan_;
  std::vector<std::vector<char>> used_;  // [alignments][rows]
};

}  // namespace

RowPlan PlanRows(std::span<const Alignment* const> alignments, std::int64_t max_rows) {
  return Planner(alignments, max_rows).Plan();
}

}  // namespace megafold::data
