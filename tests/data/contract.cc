// ExpectContract: docs/features.md, read as the test's specification.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

struct Specified {
  ArrayType type;
  std::vector<std::string> dimensions;  // "N", "3", ...
};

// The maximal runs of characters of `text` that are in `alphabet`.
std::vector<std::string> Words(const std::string& text, const char* alphabet) {
  std::vector<std::string> words;
  for (auto at = text.find_first_of(alphabet); at != std::string::npos;) {
    const auto end = std::min(text.find_first_not_of(alphabet, at), text.size());
    words.push_back(text.substr(at, end - at));
    at = text.find_first_of(alphabet, end);
  }
  return words;
}

// The rows "| `name`, `name` | type | [A, 3] | meaning |".
std::map<std::string, Specified> ReadSpecification() {
  const std::map<std::string, ArrayType> types = {
      {"u8", ArrayType::kUInt8}, {"i32", ArrayType::kInt32}, {"f32", ArrayType::kFloat32}};
  std::ifstream file(std::string(MEGAFOLD_SOURCE_DIR) + "/docs/features.md");
  std::map<std::string, Specified> specification;
  for (std::string line; std::getline(file, line);) {
    std::vector<std::string> cells;
    std::istringstream row(line);
    for (std::string cell; std::getline(row, cell, '|');) cells.push_back(cell);
    if (cells.size() < 4) continue;
    const auto type = Words(cells[2], "abcdefghijklmnopqrstuvwxyz0123456789");
    if (type.size() != 1 || !types.contains(type[0])) continue;
    const Specified specified{types.at(type[0]), Words(cells[3], "NAMTLK0123456789")};
    for (const auto& name : Words(cells[1], "abcdefghijklmnopqrstuvwxyz_")) {
      specification.emplace(name, specified);
    }
  }
  return specification;
}

// Names, types, shapes; returns the size of each letter.
std::map<std::string, std::int64_t> ExpectShapes(const Example& example) {
  static const auto specification = ReadSpecification();
  EXPECT_GT(specification.size(), 35U) << "the table of docs/features.md was not understood";
  std::map<std::string, std::int64_t> sizes;
  for (const auto& [name, specified] : specification) {
    const auto found = example.features.find(name);
    if (found == example.features.end()) {
      ADD_FAILURE() << example.entry_id << " has no " << name;
      continue;
    }
    const Array& array = found->second;
    EXPECT_EQ(array.type(), specified.type) << name;
    EXPECT_EQ(array.shape().size(), specified.dimensions.size()) << name;
    for (std::size_t d = 0; d < array.shape().size() && d < specified.dimensions.size(); ++d) {
      const std::string& letter = specified.dimensions[d];
      const std::int64_t size = std::isdigit(static_cast<unsigned char>(letter[0])) != 0
                                    ? std::stoll(letter)
                                    : sizes.emplace(letter, array.shape()[d]).first->second;
      EXPECT_EQ(array.shape()[d], size) << name << ", dimension " << d;
    }
  }
  for (const auto& [name, array] : example.features) {
    EXPECT_TRUE(specification.contains(name)) << name << " is not in docs/features.md";
  }
  return sizes;
}

void ExpectBooleans(const Example& example) {
  for (const auto& [name, array] : example.features) {
    const bool boolean = name.ends_with("_mask") || name.starts_with("is_") ||
                         name == "token_bonds" || name == "token_has_frame" ||
                         name.ends_with("_resolved");
    if (!boolean) continue;
    for (const std::uint8_t value : array.values<std::uint8_t>()) ASSERT_LE(value, 1) << name;
  }
}

void ExpectTokens(const Example& example, std::int64_t n, std::int64_t atoms) {
  const auto start = Values<std::int32_t>(example, "token_atom_start");
  const auto count = Values<std::int32_t>(example, "token_atom_count");
  const auto owner = Values<std::int32_t>(example, "atom_to_token");
  const auto restype = Values<std::uint8_t>(example, "restype");
  const auto frames = Values<std::int32_t>(example, "token_frame_atoms");
  const auto has_frame = Values<std::uint8_t>(example, "token_has_frame");
  const auto resolved = Values<std::uint8_t>(example, "atom_resolved");
  const auto index = Values<std::int32_t>(example, "token_index");
  const auto asym = Values<std::int32_t>(example, "asym_id");
  std::int32_t next = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    ASSERT_EQ(start[i], next) << "token " << i;
    ASSERT_GE(count[i], 1) << "token " << i;
    for (std::int32_t a = next; a < next + count[i]; ++a) {
      ASSERT_EQ(owner[static_cast<std::size_t>(a)], static_cast<std::int32_t>(i));
    }
    next += count[i];
    for (const char* name : {"token_center_atom", "token_rep_atom"}) {
      const auto atom = Values<std::int32_t>(example, name)[i];
      ASSERT_TRUE(atom >= start[i] && atom < next) << name << " of token " << i;
    }
    for (std::size_t j = 0; j < 3; ++j) {
      const std::int32_t atom = frames[i * 3 + j];
      ASSERT_TRUE(atom >= 0 && atom < atoms) << "token " << i;
      if (has_frame[i] != 0) {
        ASSERT_EQ(resolved[static_cast<std::size_t>(atom)], 1);
      }
    }
    int types = 0;
    for (const char* name : {"is_protein", "is_rna", "is_dna", "is_ligand"}) {
      types += Values<std::uint8_t>(example, name)[i];
    }
    ASSERT_EQ(types, 1) << "token " << i;
    ASSERT_LT(restype[i], 31) << "token " << i;
    if (i > 0) {
      ASSERT_LT(index[i - 1], index[i]);
      ASSERT_LE(asym[i - 1], asym[i]);
    }
  }
  ASSERT_EQ(next, atoms);
}

void ExpectAtoms(const Example& example, std::size_t atoms) {
  const auto resolved = Values<std::uint8_t>(example, "atom_resolved");
  const auto positions = Values<float>(example, "atom_positions");
  const auto elements = Values<std::uint8_t>(example, "ref_element");
  const auto chars = Values<std::uint8_t>(example, "ref_atom_name_chars");
  const auto references = Values<float>(example, "ref_pos");
  for (std::size_t i = 0; i < atoms; ++i) {
    ASSERT_TRUE(elements[i] > 1 && elements[i] < 128) << "atom " << i;
    ASSERT_GT(chars[i * 4], 0) << "atom " << i;
    for (std::size_t j = 0; j < 4; ++j) ASSERT_LT(chars[i * 4 + j], 64);
    for (std::size_t j = 0; j < 3; ++j) {
      ASSERT_TRUE(std::isfinite(references[i * 3 + j]));
      ASSERT_TRUE(std::isfinite(positions[i * 3 + j]));
      if (resolved[i] == 0) {
        ASSERT_EQ(positions[i * 3 + j], 0.0F);
      }
    }
  }
}

void ExpectBonds(const Example& example, std::size_t n, std::size_t atoms) {
  const auto bonds = Values<std::uint8_t>(example, "token_bonds");
  const auto pairs = Values<std::int32_t>(example, "bond_atoms");
  const auto owner = Values<std::int32_t>(example, "atom_to_token");
  const auto resolved = Values<std::uint8_t>(example, "atom_resolved");
  const auto positions = Values<float>(example, "atom_positions");
  for (std::size_t i = 0; i < n; ++i) {
    ASSERT_EQ(bonds[i * n + i], 0);
    for (std::size_t j = 0; j < i; ++j) ASSERT_EQ(bonds[i * n + j], bonds[j * n + i]);
  }
  for (std::size_t b = 0; b < pairs.size(); b += 2) {
    const auto first = static_cast<std::size_t>(pairs[b]);
    const auto second = static_cast<std::size_t>(pairs[b + 1]);
    ASSERT_LT(first, atoms);
    ASSERT_LT(second, atoms);
    ASSERT_NE(first, second);
    ASSERT_EQ(
        bonds[static_cast<std::size_t>(owner[first]) * n + static_cast<std::size_t>(owner[second])],
        1);
    if (resolved[first] == 0 || resolved[second] == 0) continue;
    float squared = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      squared += std::pow(positions[first * 3 + j] - positions[second * 3 + j], 2.0F);
    }
    ASSERT_LE(std::sqrt(squared), 2.4F);
  }
}

void ExpectAlignment(const Example& example, std::size_t n, std::size_t rows) {
  const auto msa = Values<std::uint8_t>(example, "msa");
  const auto restype = Values<std::uint8_t>(example, "restype");
  const auto profile = Values<float>(example, "profile");
  ASSERT_GE(rows, 1U);
  for (const std::uint8_t value : msa) ASSERT_LT(value, 32);
  for (std::size_t i = 0; i < n; ++i) {
    ASSERT_EQ(msa[i], restype[i]) << "row 0 is the query; token " << i;
    float sum = 0;
    for (std::size_t c = 0; c < 32; ++c) sum += profile[i * 32 + c];
    ASSERT_NEAR(sum, 1.0F, 1e-4F) << "token " << i;
  }
  for (std::size_t r = 1; r < rows; ++r) {
    const bool empty = std::all_of(msa.begin() + static_cast<std::ptrdiff_t>(r * n),
                                   msa.begin() + static_cast<std::ptrdiff_t>((r + 1) * n),
                                   [](std::uint8_t c) { return c == 31; });
    // A row may have gaps alone in a crop of its chain, but not in a whole entry.
    if (Values<std::int32_t>(example, "token_index").back() + 1 == static_cast<std::int32_t>(n)) {
      ASSERT_FALSE(empty) << "row " << r;
    }
  }
}

}  // namespace

void ExpectContract(const Example& example) {
  SCOPED_TRACE(example.entry_id);
  auto sizes = ExpectShapes(example);
  if (testing::Test::HasFailure()) return;
  ExpectBooleans(example);
  ExpectTokens(example, sizes["N"], sizes["A"]);
  ExpectAtoms(example, static_cast<std::size_t>(sizes["A"]));
  ExpectBonds(example, static_cast<std::size_t>(sizes["N"]), static_cast<std::size_t>(sizes["A"]));
  ExpectAlignment(example, static_cast<std::size_t>(sizes["N"]),
                  static_cast<std::size_t>(sizes["M"]));
}

}  // namespace megafold::data
