#include "data/features/example_msa.h"

#include <algorithm>

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
  Array profile(ArrayType::kFloat32, {n, kResidueClasses});
  Array deletion_mean(ArrayType::kFloat32, {n});
  std::fill(msa.values<std::uint8_t>().begin(), msa.values<std::uint8_t>().end(), kGap);
  std::fill(mask.values<std::uint8_t>().begin(), mask.values<std::uint8_t>().end(),
            std::uint8_t{1});
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const Token& token = entry.tokens[static_cast<std::size_t>(tokens[i])];
    const std::int32_t alignment_index = AlignmentOf(entry, token);
    if (alignment_index < 0) {
      msa.values<std::uint8_t>()[i] = token.restype;
      profile.values<float>()[i * kResidueClasses + token.restype] = 1;
      continue;
    }
    const auto a = static_cast<std::size_t>(alignment_index);
    const Alignment& alignment = entry.alignments[a];
    const auto column = static_cast<std::size_t>(token.msa_column);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::int32_t row = entry.rows.At(rows[r], a);
      if (row == kNoRow) continue;
      msa.values<std::uint8_t>()[r * tokens.size() + i] = alignment.Row(row)[column];
      deletions.values<std::uint8_t>()[r * tokens.size() + i] = alignment.DeletionRow(row)[column];
    }
    std::copy_n(alignment.profile.begin() + static_cast<std::ptrdiff_t>(column * kResidueClasses),
                kResidueClasses,
                profile.values<float>().begin() + static_cast<std::ptrdiff_t>(i * kResidueClasses));
    deletion_mean.values<float>()[i] = alignment.deletion_mean[column];
  }
  features->emplace("msa", std::move(msa));
  features->emplace("msa_deletions", std::move(deletions));
  features->emplace("msa_mask", std::move(mask));
  features->emplace("profile", std::move(profile));
  features->emplace("deletion_mean", std::move(deletion_mean));
}

}  // namespace megafold::data
