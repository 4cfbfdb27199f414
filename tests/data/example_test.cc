// Crops, conformers, rows drawn per step, batches.
#include "data/features/example.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "data/features/build_entry.h"
#include "data/features/crop.h"
#include "data/loader.h"
#include "megafold/core/error.h"
#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

// 2q2k: DNA with modified residues, two copies of a protein with missing residues, a ligand.
const Entry& DemoEntry() {
  static const Entry entry = [] {
    const ComponentDictionary dictionary(DemoRoot() / "ccd");
    return BuildEntry("2q2k", DemoRoot() / "mmcif" / "2q2k.cif.gz", dictionary,
                      AlignmentFolder(DemoRoot() / "msa"), 16384);
  }();
  return entry;
}

void ExpectAscending(const std::vector<std::int32_t>& tokens) {
  EXPECT_TRUE(std::is_sorted(tokens.begin(), tokens.end()));
  EXPECT_EQ(std::set(tokens.begin(), tokens.end()).size(), tokens.size());
}

TEST(Crop, ContiguousTakesRunsOfChainsAndExactlyTheCount) {
  const Entry& entry = DemoEntry();
  std::set<std::vector<std::int32_t>> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed, RandomUse::kCrop);
    const auto tokens = ContiguousCrop(entry, 50, random);
    ASSERT_EQ(tokens.size(), 50U);
    ExpectAscending(tokens);
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      const auto& a = entry.tokens[static_cast<std::size_t>(tokens[i - 1])];
      const auto& b = entry.tokens[static_cast<std::size_t>(tokens[i])];
      if (a.asym_id == b.asym_id) {
        ASSERT_EQ(tokens[i], tokens[i - 1] + 1);
      }
    }
    seen.insert(tokens);
  }
  EXPECT_GT(seen.size(), 150U);
}

TEST(Crop, SpatialTakesTheNearestResolvedTokens) {
  const Entry& entry = DemoEntry();
  const auto position = [&](std::int32_t i) {
    return entry
        .atoms[static_cast<std::size_t>(entry.tokens[static_cast<std::size_t>(i)].center_atom)];
  };
  Random random(3, RandomUse::kCrop);
  const auto tokens = SpatialCrop(entry, 40, random);
  ASSERT_EQ(tokens.size(), 40U);
  ExpectAscending(tokens);
  // Some member is a centre from which every member is nearer than every other resolved token.
  const bool is_ball = std::any_of(tokens.begin(), tokens.end(), [&](std::int32_t center) {
    float inside = 0;
    float outside = std::numeric_limits<float>::max();
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(entry.tokens.size()); ++i) {
      if (!position(i).resolved) continue;
      const float distance = Distance(position(center).position, position(i).position);
      if (std::binary_search(tokens.begin(), tokens.end(), i)) {
        inside = std::max(inside, distance);
      } else {
        outside = std::min(outside, distance);
      }
    }
    return inside <= outside;
  });
  EXPECT_TRUE(is_ball);
  for (const std::int32_t i : tokens) EXPECT_TRUE(position(i).resolved);
  EXPECT_EQ(SpatialCrop(entry, 1000, random).size(), 162U) << "all resolved tokens";
}

TEST(Crop, InterfaceCropsHoldTwoChains) {
  const Entry& entry = DemoEntry();
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Random random(seed, RandomUse::kCrop);
    std::set<std::int32_t> chains;
    for (const std::int32_t i : SpatialInterfaceCrop(entry, 80, random)) {
      chains.insert(entry.tokens[static_cast<std::size_t>(i)].asym_id);
    }
    EXPECT_GE(chains.size(), 2U) << "seed " << seed;
  }
}

TEST(Crop, AContiguousCropHasSomethingResolved) {
  const Entry& entry = DemoEntry();  // 25 unresolved tokens in a row
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed, RandomUse::kCrop);
    const auto tokens = DrawCrop(entry, 8, {1, 0, 0}, random);
    ASSERT_TRUE(std::any_of(
        tokens.begin(), tokens.end(),
        [&](std::int32_t i) { return std::ranges::count(entry.resolved_tokens, i) > 0; }))
        << "seed " << seed;
  }
}

TEST(Crop, WeightsChooseTheKindAndSmallEntriesStayWhole) {
  const Entry& entry = DemoEntry();
  const auto has_unresolved = [&](const std::vector<std::int32_t>& tokens) {
    return std::any_of(tokens.begin(), tokens.end(), [&](std::int32_t i) {
      const Token& token = entry.tokens[static_cast<std::size_t>(i)];
      return !entry.atoms[static_cast<std::size_t>(token.center_atom)].resolved;
    });
  };
  int contiguous = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed, RandomUse::kCrop);
    EXPECT_FALSE(has_unresolved(DrawCrop(entry, 150, {0, 1, 1}, random)));
    Random again(seed, RandomUse::kCrop);
    // 150 of 213 tokens, of which 51 are not resolved: a contiguous crop cannot avoid them all.
    contiguous += has_unresolved(DrawCrop(entry, 165, {0.5, 0.25, 0.25}, again)) ? 1 : 0;
  }
  EXPECT_GT(contiguous, 30);
  EXPECT_LT(contiguous, 70);
  Random random(0, RandomUse::kCrop);
  EXPECT_EQ(DrawCrop(entry, 0, {}, random).size(), entry.tokens.size());
  EXPECT_EQ(DrawCrop(entry, 213, {}, random).size(), 213U);
}

TEST(Example, FollowsFromTheSeedAlone) {
  DataConfig config;
  config.crop_tokens = 64;
  config.msa_rows = 8;
  const Example first = MakeExample(DemoEntry(), config, 5);
  const Example again = MakeExample(DemoEntry(), config, 5);
  const Example other = MakeExample(DemoEntry(), config, 6);
  for (const auto& [name, array] : first.features) {
    EXPECT_TRUE(std::ranges::equal(array.bytes(), again.features.at(name).bytes())) << name;
  }
  EXPECT_NE(Values<float>(first, "ref_pos"), Values<float>(other, "ref_pos"));
  ExpectContract(first);
  ExpectContract(other);
}

TEST(Example, ConformersAreRotatedWithoutReflectionAndCentred) {
  DataConfig config;
  config.crop_tokens = 0;
  const Example a = MakeExample(DemoEntry(), config, 1);
  const auto positions = Values<float>(a, "ref_pos");
  const auto uid = Values<std::int32_t>(a, "ref_space_uid");
  const auto at = [&](std::size_t i) {
    return Vec3{positions[i * 3], positions[i * 3 + 1], positions[i * 3 + 2]};
  };
  std::map<std::int32_t, std::vector<std::size_t>> residues;
  for (std::size_t i = 0; i < uid.size(); ++i) residues[uid[i]].push_back(i);
  ASSERT_EQ(residues.size(), 20U + 70U + 70U + 1U);
  const auto& source = DemoEntry().atoms;
  for (const auto& [id, atoms] : residues) {
    Vec3 sum{};
    for (const std::size_t i : atoms) {
      for (std::size_t k = 0; k < 3; ++k) sum[k] += at(i)[k];
      EXPECT_NEAR(Distance(at(i), at(atoms[0])),
                  Distance(source[i].ref_position, source[atoms[0]].ref_position), 1e-3F);
    }
    EXPECT_NEAR(Dot(sum, sum), 0, 1e-4F) << "residue " << id;
    if (atoms.size() < 4) continue;
    const auto volume = [&](auto point) {  // signed: a reflection changes it
      const Vec3 u = point(atoms[1]) - point(atoms[0]);
      const Vec3 v = point(atoms[2]) - point(atoms[0]);
      const Vec3 w = point(atoms[3]) - point(atoms[0]);
      return Dot(u,
                 {v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0]});
    };
    EXPECT_NEAR(volume(at), volume([&](std::size_t i) { return source[i].ref_position; }), 2e-3F);
  }
}

TEST(Example, RotationsCoverTheSphereEvenly) {
  double sums[9] = {};
  double squares[9] = {};
  constexpr int kCount = 4000;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    Random random(9, RandomUse::kConformer, i);
    float matrix[9];
    RandomRotation(random, matrix);
    for (std::size_t k = 0; k < 9; ++k) {
      sums[k] += matrix[k];
      squares[k] += matrix[k] * matrix[k];
    }
  }
  for (std::size_t k = 0; k < 9; ++k) {
    EXPECT_NEAR(sums[k] / kCount, 0, 0.05);           // standard error 0.009
    EXPECT_NEAR(squares[k] / kCount, 1.0 / 3, 0.03);  // standard error 0.005
  }
}

TEST(Example, RowsAreDrawnAnewAndTheQueryStays) {
  DataConfig config;
  config.crop_tokens = 0;
  config.msa_rows = 6;
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Example example = MakeExample(DemoEntry(), config, seed);
    EXPECT_EQ(example.features.at("msa").shape()[0], 6);
    ExpectContract(example);
    const auto msa = Values<std::uint8_t>(example, "msa");
    seen.emplace(msa.begin(), msa.end());
  }
  EXPECT_GT(seen.size(), 15U);
  config.msa_rows = 1000;
  EXPECT_EQ(MakeExample(DemoEntry(), config, 0).features.at("msa").shape()[0], 21);
}

TEST(Example, CopiesOfAnEntityShareTheirRows) {
  DataConfig config;
  config.crop_tokens = 0;
  const Example example = MakeExample(DemoEntry(), config, 0);
  const auto msa = Values<std::uint8_t>(example, "msa");
  for (std::size_t row = 0; row < 21; ++row) {
    const auto start = msa.begin() + static_cast<std::ptrdiff_t>(row * 213 + 58);
    EXPECT_TRUE(std::equal(start, start + 70, start + 70));
    // DNA and ligand have no alignment: gaps but for the query.
    const bool gaps = std::all_of(start - 58, start, [](auto c) { return c == kGap; });
    EXPECT_EQ(gaps, row > 0);
  }
}

// 2q2k's protein is there twice, with different residues and atoms missing.
TEST(Example, HoldsTheTruthOfEveryCopyOfItsChains) {
  const Entry& entry = DemoEntry();
  DataConfig config;
  config.crop_tokens = 60;
  config.crop = {.contiguous = 1, .spatial = 0, .spatial_interface = 0};
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const Example example = MakeExample(entry, config, seed);
    const auto tokens = Values<std::int32_t>(example, "token_index");
    const auto token_of = Values<std::int32_t>(example, "atom_to_token");
    const auto names = Values<std::uint8_t>(example, "ref_atom_name_chars");
    const auto copies = Values<std::int32_t>(example, "entity_copies");
    const auto positions = Values<float>(example, "atom_copy_positions");
    const auto resolved = Values<std::uint8_t>(example, "atom_copy_resolved");
    const auto own = Values<std::uint8_t>(example, "atom_resolved");
    ASSERT_EQ(resolved.size(), 2 * own.size());
    int seen = 0;
    for (std::size_t i = 0; i < own.size(); ++i) {
      const auto crop_token = static_cast<std::size_t>(token_of[i]);
      const Token& token = entry.tokens[static_cast<std::size_t>(tokens[crop_token])];
      const ChainFeatures& chain = entry.chains[static_cast<std::size_t>(token.asym_id)];
      const bool protein = token.type == MoleculeType::kProtein;
      ASSERT_EQ(copies[crop_token], protein ? 2 : 1);
      EXPECT_EQ(resolved[static_cast<std::size_t>(chain.sym_id) * own.size() + i], own[i]);
      for (std::int32_t k = 0; k < 2; ++k) {
        const std::size_t at = static_cast<std::size_t>(k) * own.size() + i;
        const auto expected = std::ranges::find_if(entry.atoms, [&](const Atom& atom) {
          const Token& other = entry.tokens[static_cast<std::size_t>(atom.token)];
          const ChainFeatures& of = entry.chains[static_cast<std::size_t>(other.asym_id)];
          return of.entity_id == chain.entity_id && of.sym_id == k &&
                 other.residue_index == token.residue_index &&
                 std::equal(atom.name_chars, atom.name_chars + 4,
                            names.begin() + static_cast<std::ptrdiff_t>(4 * i));
        });
        const bool there = expected != entry.atoms.end() && expected->resolved;
        ASSERT_EQ(resolved[at] != 0, there) << "atom " << i << ", copy " << k;
        for (std::size_t axis = 0; axis < 3; ++axis) {
          ASSERT_EQ(positions[3 * at + axis], there ? expected->position[axis] : 0.0F);
        }
        seen += there && k != chain.sym_id ? 1 : 0;
      }
    }
    EXPECT_GT(seen, 0) << "seed " << seed << " drew no protein";
  }
}

TEST(Example, AnEntryWithoutCopiesHoldsNone) {
  const ComponentDictionary dictionary(DemoRoot() / "ccd");
  const Entry entry = BuildEntry("1ubq", DemoRoot() / "mmcif" / "1ubq.cif.gz", dictionary,
                                 AlignmentFolder(DemoRoot() / "msa"), 16384);
  const Example example = MakeExample(entry, {}, 1);
  EXPECT_EQ(example.features.at("atom_copy_positions").shape()[0], 0);
  EXPECT_EQ(example.features.at("atom_copy_resolved").shape()[0], 0);
}

TEST(Collate, PadsEverySizeAndKeepsTheContent) {
  DataConfig config;
  config.crop_tokens = 40;
  const Example small = MakeExample(DemoEntry(), config, 1);
  config.crop_tokens = 60;
  const Example large = MakeExample(DemoEntry(), config, 2);
  const Example examples[] = {small, large};
  const Batch batch = Collate(examples);
  EXPECT_EQ(batch.entry_ids, (std::vector<std::string>{"2q2k", "2q2k"}));
  const auto value = [&](const char* name, std::vector<std::int64_t> index) {
    const Array& array = batch.features.at(name);
    std::int64_t flat = 0;
    for (std::size_t d = 0; d < index.size(); ++d) flat = flat * array.shape()[d] + index[d];
    return array.values<std::uint8_t>()[static_cast<std::size_t>(flat)];
  };
  EXPECT_EQ(batch.features.at("token_bonds").shape(), (std::vector<std::int64_t>{2, 60, 60}));
  const auto bonds = Values<std::uint8_t>(small, "token_bonds");
  for (std::int64_t i = 0; i < 60; ++i) {
    EXPECT_EQ(value("token_mask", {0, i}), i < 40 ? 1 : 0);
    EXPECT_EQ(value("token_mask", {1, i}), 1);
    EXPECT_EQ(value("msa", {0, 0, i}),
              i < 40 ? Values<std::uint8_t>(small, "msa")[static_cast<std::size_t>(i)] : kGap);
    EXPECT_EQ(value("msa_mask", {0, 0, i}), i < 40 ? 1 : 0);
    for (std::int64_t j = 0; j < 60; ++j) {
      const auto expected =
          i < 40 && j < 40 ? bonds[static_cast<std::size_t>(i * 40 + j)] : std::uint8_t{0};
      ASSERT_EQ(value("token_bonds", {0, i, j}), expected);
    }
  }
  const auto positions = batch.features.at("atom_positions").values<float>();
  const auto first = Values<float>(small, "atom_positions");
  const auto second = Values<float>(large, "atom_positions");
  const auto atoms = static_cast<std::size_t>(batch.features.at("atom_positions").shape()[1]);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), positions.begin()));
  EXPECT_TRUE(std::all_of(positions.begin() + static_cast<std::ptrdiff_t>(first.size()),
                          positions.begin() + static_cast<std::ptrdiff_t>(atoms * 3),
                          [](float x) { return x == 0; }));
  EXPECT_TRUE(std::equal(second.begin(), second.end(),
                         positions.begin() + static_cast<std::ptrdiff_t>(atoms * 3)));
}

TEST(Collate, RefusesExamplesThatDiffer) {
  const Example example = MakeExample(DemoEntry(), {}, 1);
  Example without = example;
  without.features.erase("msa");
  const Example pair[] = {example, without};
  EXPECT_EQ(ErrorOf([&] { Collate(pair); }), "Collate: 2q2k has 42 features, expected 43 as 2q2k");
  EXPECT_EQ(ErrorOf([] { Collate({}); }), "Collate: no example");
}

TEST(ArrayTest, ChecksTypeAndSize) {
  Array array(ArrayType::kInt32, {2, 3});
  EXPECT_EQ(array.numel(), 6);
  EXPECT_EQ(array.values<std::int32_t>().size(), 6U);
  EXPECT_EQ(ErrorOf([&] { array.values<float>(); }), "Array: holds int32, read as float32");
  EXPECT_THROW(Array(ArrayType::kUInt8, {-1}), Error);
  EXPECT_THROW(Array(ArrayType::kUInt8, {std::int64_t{1} << 40, std::int64_t{1} << 40}), Error);
  EXPECT_EQ(Array(ArrayType::kFloat32, {0, 5}).numel(), 0);
}

}  // namespace
}  // namespace megafold::data
