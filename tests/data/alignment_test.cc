// A3M files, species, and the joining of several alignments.
#include <gtest/gtest.h>

#include "data/msa/row_plan.h"
#include "megafold/core/error.h"
#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

QuerySequence Query(const std::string& letters, MoleculeType type = MoleculeType::kProtein) {
  QuerySequence query;
  query.type = type;
  for (const char letter : letters) {
    query.classes.push_back(*ClassOfLetter(letter == 'x' ? 'X' : letter, type));
    query.is_modified.push_back(letter == 'X' || letter == 'x' ? 1 : 0);
    query.is_cap.push_back(letter == 'x' ? 1 : 0);
  }
  return query;
}

std::string Letters(const Alignment& alignment, std::int64_t row) {
  std::string text;
  for (const std::uint8_t residue_class : alignment.Row(row)) text += LetterOfClass(residue_class);
  return text;
}

class AlignmentTest : public testing::Test {
 protected:
  Alignment Read(const std::vector<std::string>& texts, const QuerySequence& query,
                 std::int64_t max_rows = 100) {
    std::vector<std::filesystem::path> files;
    for (const std::string& text : texts) {
      const std::string name =
          StrCat("a", files.size(), files.size() % 2 == 0 ? ".a3m" : ".a3m.gz");
      folder_.Write(name, text);
      files.push_back(folder_.path() / name);
    }
    return ReadAlignment(files, "A", query, max_rows);
  }
  TempFolder folder_;
};

TEST_F(AlignmentTest, DropsRowsThatRepeatAnother) {
  const auto alignment =
      Read({">q\nACDE\n>one\nAC-E\n>two wraps\r\nAx\r\nyC.DzE\n>again\nAC-E\n"}, Query("ACDE"));
  EXPECT_EQ(alignment.rows_read, 4);
  EXPECT_EQ(alignment.rows_distinct, 2) << "'two' is the query without its insertions";
  ASSERT_EQ(alignment.rows(), 2);
  EXPECT_EQ(Letters(alignment, 1), "AC-E");
}

TEST_F(AlignmentTest, ProfileAndDeletionMeanAreOverAllDistinctRows) {
  const auto alignment =
      Read({">q\nACDE\n>a\nAC-E\n>b\nxyACD-\n>c\nAzCDK\n"}, Query("ACDE"), /*max_rows=*/2);
  EXPECT_EQ(alignment.rows(), 2);
  EXPECT_EQ(alignment.rows_distinct, 4);
  EXPECT_EQ(Letters(alignment, 1), "AC-E");
  EXPECT_FLOAT_EQ(alignment.profile[0 * 32 + 0], 1.0F);
  EXPECT_FLOAT_EQ(alignment.profile[2 * 32 + 3], 0.75F);
  EXPECT_FLOAT_EQ(alignment.profile[2 * 32 + 31], 0.25F);
  EXPECT_FLOAT_EQ(alignment.profile[3 * 32 + 11], 0.25F);
  EXPECT_EQ(alignment.deletion_mean, (std::vector<float>{0.5F, 0.25F, 0, 0}));
}

TEST_F(AlignmentTest, DeletionsAreClampedInRowsButNotInTheMean) {
  const auto alignment = Read({">q\nAC\n>a\nA" + std::string(300, 'x') + "D\n"}, Query("AC"));
  EXPECT_EQ(alignment.DeletionRow(1)[1], 255);
  EXPECT_FLOAT_EQ(alignment.deletion_mean[1], 150.0F);
}

TEST_F(AlignmentTest, SeveralFilesFollowEachOther) {
  const auto alignment = Read({">q\nACD\n>a\nACE\n", ">q\nACD\n>b\nACF\n>c\nACE\n"}, Query("ACD"));
  EXPECT_EQ(alignment.rows_read, 5);
  ASSERT_EQ(alignment.rows(), 3);
  EXPECT_EQ(Letters(alignment, 2), "ACF");
  EXPECT_EQ(alignment.files, (std::vector<std::string>{"a0.a3m", "a1.a3m.gz"}));
}

TEST_F(AlignmentTest, NucleicAcidsReadTAndUAlike) {
  const auto alignment = Read({">q\nACGU\n>a\nTTNN\n"}, Query("ACGU", MoleculeType::kRna));
  EXPECT_EQ(Letters(alignment, 0), "ACGU");
  EXPECT_EQ(Letters(alignment, 1), "UUNN");
}

TEST_F(AlignmentTest, ModifiedResiduesMatchAnyLetterAndCapsMayBeLeftOut) {
  EXPECT_EQ(Letters(Read({">q\nAVD\n>a\nAKD\n"}, Query("AXD")), 1), "AKD");
  EXPECT_EQ(Letters(Read({">q\nXAD\n>a\nXAK\n"}, Query("xAD")), 1), "XAK");
  EXPECT_EQ(Letters(Read({">q\nAD\n>a\nAK\n"}, Query("xAD")), 1), "-AK");
}

TEST_F(AlignmentTest, WithoutAFileTheQueryIsTheOnlyRow) {
  const auto alignment = Read({}, Query("ACD"));
  EXPECT_EQ(alignment.rows(), 1);
  EXPECT_EQ(alignment.rows_read, 0);
  EXPECT_EQ(Letters(alignment, 0), "ACD");
  EXPECT_FLOAT_EQ(alignment.profile[1 * 32 + 4], 1.0F);
}

TEST_F(AlignmentTest, ErrorsNameFileChainRowAndWhatWasExpected) {
  const std::string file = (folder_.path() / "a0.a3m").string() + ": chain A";
  const auto error = [&](const std::string& text) {
    return ErrorOf([&] { Read({text}, Query("ACD")); });
  };
  EXPECT_EQ(error(">q\nAC\n"), file +
                                   ", row 1 ('q'): the query has 2 columns, expected 3 as the "
                                   "chain has residues");
  EXPECT_EQ(error(">q\nACD\n>b\nACDE\n"),
            file + ", row 2 ('b') has 4 columns, expected 3 as the query");
  EXPECT_EQ(error(">q\nAKD\n"),
            file + ", row 1 ('q'): the query has 'K' at position 2, the structure has 'C'");
  EXPECT_EQ(error(">q\nACD\n>b\nA*D\n"),
            file + ", row 2 ('b'): '*' in the sequence, expected letters, '-' or '.'");
  EXPECT_EQ(error("\n \n"), file + ": empty alignment");
  EXPECT_EQ(error("ACD\n"), file + ": begins with 'ACD\n', expected '>' and a header");
}

TEST(Species, OfUsualHeaders) {
  EXPECT_EQ(SpeciesOf("tr|A0A2W3M096|A0A2W3M096_STAAU ParR OS=Staphylococcus OX=1280 GN=x"),
            "taxon 1280");
  EXPECT_EQ(
      SpeciesOf("UniRef90_A0A141BHY3/1-51 x n=37 Tax=Staph TaxID=90964 RepID=A0A141BHY3_STAXY"),
      "taxon 90964");
  EXPECT_EQ(SpeciesOf("sp|P01112|RASH_HUMAN/1-166"), "HUMAN");
  EXPECT_EQ(SpeciesOf("RASH_HUMAN"), "HUMAN");
  EXPECT_EQ(SpeciesOf("UniRef100_Q9 x RepID=Q9_MOUSE"), "MOUSE");
  EXPECT_EQ(SpeciesOf("A0A8C9R134\t213\t0.963"), "");
  EXPECT_EQ(SpeciesOf("MGYP000048211747/1-51"), "");
  EXPECT_EQ(SpeciesOf("4g3x_A"), "");
  EXPECT_EQ(SpeciesOf("OX="), "");
  EXPECT_EQ(SpeciesOf(""), "");
}

// An alignment of three columns, whose rows have these species and identities to the query.
Alignment Tiny(const std::vector<std::pair<std::string, int>>& rows) {
  Alignment alignment;
  alignment.columns = 3;
  const auto add = [&](const std::string& species, int same) {
    for (int i = 0; i < 3; ++i) alignment.classes.push_back(i < same ? 0 : 5);
    alignment.deletions.resize(alignment.classes.size());
    alignment.species.push_back(species);
  };
  add("", 3);
  for (const auto& [species, same] : rows) add(species, same);
  return alignment;
}

std::vector<std::vector<int>> RowsOf(const RowPlan& plan) {
  std::vector<std::vector<int>> rows;
  for (std::int64_t r = 0; r < plan.size(); ++r) {
    rows.emplace_back();
    for (std::size_t a = 0; a < plan.alignments; ++a) rows.back().push_back(plan.At(r, a));
  }
  return rows;
}

TEST(RowPlan, PairsBySpeciesAndIdentityThenTakesTurns) {
  const Alignment a = Tiny({{"H", 1}, {"", 1}, {"H", 2}, {"M", 1}});
  const Alignment b = Tiny({{"M", 1}, {"H", 1}, {"", 2}});
  const Alignment* parts[] = {&a, &b};
  const RowPlan plan = PlanRows(parts, 100);
  EXPECT_EQ(plan.paired, 2);
  EXPECT_EQ(RowsOf(plan), (std::vector<std::vector<int>>{{0, 0},
                                                         {3, 2},   // H: the more similar row of a
                                                         {4, 1},   // M
                                                         {1, -1},  // the rest in turns
                                                         {-1, 3},
                                                         {2, -1}}));
}

TEST(RowPlan, SpeciesOfMoreChainsComeFirst) {
  const Alignment a = Tiny({{"X", 1}, {"Y", 1}});
  const Alignment b = Tiny({{"X", 1}, {"Y", 1}});
  const Alignment c = Tiny({{"Y", 1}});
  const Alignment* parts[] = {&a, &b, &c};
  EXPECT_EQ(RowsOf(PlanRows(parts, 100)),
            (std::vector<std::vector<int>>{{0, 0, 0}, {2, 2, 1}, {1, 1, -1}}));
}

TEST(RowPlan, StaysWithinItsLimits) {
  std::vector<std::pair<std::string, int>> rows(20, {"H", 1});
  rows.resize(40, {"", 1});
  const Alignment a = Tiny(rows);
  const Alignment b = Tiny(rows);
  const Alignment* parts[] = {&a, &b};
  const RowPlan plan = PlanRows(parts, 10);
  EXPECT_EQ(plan.size(), 10);
  EXPECT_EQ(plan.paired, 5);
  EXPECT_EQ(PlanRows(parts, 1).size(), 1);
  const Alignment* one[] = {&a};
  EXPECT_EQ(PlanRows(one, 100).size(), 41);
  EXPECT_EQ(PlanRows({}, 100).size(), 0);
}

}  // namespace
}  // namespace megafold::data
