#include "data/features/example_msa.h"

#include <algorithm>
#include <span>

#include "data/random.h"

namespace megafold::data {
namespace {

std::int32_t AlignmentOf(const Entry& entry, const Token& token) {
  return entry.chains[static_cast<std::size_t>(token.asym_id)].alignment;
}

// Rows of the plan that the crop can use, row 0 first.
std::vector<std::int64_t> UsefulRows(const Entry& entry, const std::vector<std::int32_t>& tokens) {
  std::vector<char> in_crop(entry.alignments.size());
  for (const std::int32_t i : tokens) {
    const std::int32_t alignment = AlignmentOf(entry, entry.tokens[static_cast<std::size_t>(i)]);
    if (alignment >= 0) in_crop[static_cast<std::size_t>(alignment)] = 1;
  }
  std::vector<std::int64_t> rows = {0};
  for (std::int64_t row = 1; row < entry.rows.size(); ++row) {
    for (std::size_t a = 0; a < in_crop.size(); ++a) {
      if (in_crop[a] == 0 || entry.rows.At(row, a) == kNoRow) continue;
      rows.push_back(row);
      break;
    }
  }
  return rows;
}

// Row 0 and a random choice of the others, ascending.
std::vector<std::int64_t> DrawRows(std::vector<std::int64_t> rows, std::int64_t max_rows,
                                   std::uint64_t seed) {
  const auto wanted = static_cast<std::size_t>(max_rows);
  if (rows.size() <= wanted) return rows;
  Random random(seed, RandomUse::kMsaRows);
  for (std::size_t i = 1; i < wanted; ++i) {
    std::swap(rows[i], rows[i + random.Below(rows.size() - i)]);
  }
  rows.resize(wanted);
  std::sort(rows.begin(), rows.end());
  return rows;
}

// One row of the entry for the crop's tokens; `msa` comes in as gaps, `deletions` as 0. Tokens
// without an alignment are in the query alone.
void FillRow(const Entry& entry, const std::vector<std::int32_t>& tokens, std::int64_t plan_row,
             std::span<std::uint8_t> msa, std::span<std::uint8_t> deletions) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const Token& token = entry.tokens[static_cast<std::size_t>(tokens[i])];
    const std::int32_t alignment = AlignmentOf(entry, token);
    if (alignment < 0) {
      if (plan_row == 0) msa[i] = token.restype;
      continue;
    }
    const auto a = static_cast<std::size_t>(alignment);
    const std::int32_t row = entry.rows.At(plan_row, a);
    if (row == kNoRow) continue;
    const auto column = static_cast<std::size_t>(token.msa_column);
    msa[i] = entry.alignments[a].Row(row)[column];
    deletions[i] = entry.alignments[a].DeletionRow(row)[column];
  }
}

void AddProfile(const Entry& entry, const std::vector<std::int32_t>& tokens,
                std::map<std::string, Array>* features) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  Array profile(ArrayType::kFloat32, {n, kResidueClasses});
  Array deletion_mean(ArrayType::kFloat32, {n});
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const Token& token = entry.tokens[static_cast<std::size_t>(tokens[i])];
    const auto out = profile.values<float>().subspan(i * kResidueClasses, kResidueClasses);
    const std::int32_t a = AlignmentOf(entry, token);
    if (a < 0) {
      out[token.restype] = 1;
      continue;
    }
    const Alignment& alignment = entry.alignments[static_cast<std::size_t>(a)];
    const auto column = static_cast<std::size_t>(token.msa_column);
    std::copy_n(alignment.profile.begin() + static_cast<std::ptrdiff_t>(column * kResidueClasses),
                kResidueClasses, out.begin());
    deletion_mean.values<float>()[i] = alignment.deletion_mean[column];
  }
  features->emplace("profile", std::move(profile));
  features->emplace("deletion_mean", std::move(deletion_mean));
}

}  // namespace

void AddMsaFeatures(const Entry& entry, const std::vector<std::int32_t>& tokens,
                    std::int64_t max_rows, std::uint64_t seed,
                    std::map<std::string, Array>* features) {
  const auto rows = DrawRows(UsefulRows(entry, tokens), max_rows, seed);
  const auto n = static_cast<std::int64_t>(tokens.size());
  const auto m = static_cast<std::int64_t>(rows.size());
  Array msa(ArrayType::kUInt8, {m, n});
  Array deletions(ArrayType::kUInt8, {m, n});
  Array mask(ArrayType::kUInt8, {m, n});
  std::ranges::fill(msa.values<std::uint8_t>(), kGap);
  std::ranges::fill(mask.values<std::uint8_t>(), std::uint8_t{1});
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const std::size_t offset = r * tokens.size();
    FillRow(entry, tokens, rows[r], msa.values<std::uint8_t>().subspan(offset, tokens.size()),
            deletions.values<std::uint8_t>().subspan(offset, tokens.size()));
  }
  AddProfile(entry, tokens, features);
  features->emplace("msa", std::move(msa));
  features->emplace("msa_deletions", std::move(deletions));
  features->emplace("msa_mask", std::move(mask));
}

}  // namespace megafold::data
