// From mmCIF text to tokens and atoms, on files made for one rule each.
#include <gtest/gtest.h>

#include <algorithm>

#include "data/features/entry.h"
#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

class StructureTest : public testing::Test {
 protected:
  Structure Read(const CifWriter& writer) {
    folder_.Write("mmcif/test.cif", writer.Text());
    return ReadStructure(folder_.path() / "mmcif/test.cif", dictionary_);
  }
  Entry Tokens(const CifWriter& writer) { return Tokenize(Read(writer), dictionary_); }

  static std::int64_t LeftOutCount(const std::vector<LeftOut>& list, const std::string& why) {
    std::int64_t count = 0;
    for (const LeftOut& item : list) count += item.why == why ? item.count : 0;
    return count;
  }
  std::int64_t BondedTokens(const Entry& entry, std::int32_t a, std::int32_t b) {
    return std::count(entry.token_bonds.begin(), entry.token_bonds.end(), IndexPair(a, b));
  }

  TempFolder folder_;
  ComponentDictionary dictionary_{DemoRoot() / "ccd"};
};

TEST_F(StructureTest, ReadsHeaderAndLeavesOutWaterHydrogenAndOtherModels) {
  CifWriter writer;
  writer.Polymer("A", {"ALA", "GLY"});
  writer.Atom("H", "HA", "ALA", "A", {.seq = "1"}, 0, 0, 0);
  writer.Atom("D", "D1", "ALA", "A", {.seq = "1"}, 0, 0, 0);
  writer.Atom("O", "O", "HOH", "B", {.auth_seq = "301"}, 0, 0, 0);
  writer.Residue("A", "ALA", {.seq = "1", .model = "2"});
  const Structure structure = Read(writer);
  EXPECT_EQ(structure.method, "X-RAY DIFFRACTION");
  EXPECT_EQ(structure.release_date, "2004-03-09");  // the earliest, wherever it stands
  EXPECT_EQ(structure.resolution, 2.5);
  ASSERT_EQ(structure.chains.size(), 1U);
  EXPECT_EQ(structure.chains[0].residues[0].atoms.size(), 5U);
  const auto left_out = structure.left_out.List();
  EXPECT_EQ(LeftOutCount(left_out, "hydrogen"), 2);
  EXPECT_EQ(LeftOutCount(left_out, "water"), 1);
  EXPECT_EQ(LeftOutCount(left_out, "not in the first model"), 5);
}

TEST_F(StructureTest, TakesTheMostOccupiedLocationAndTheFirstOfEquals) {
  const auto position_of = [&](const std::string& a, const std::string& b) {
    CifWriter writer;
    writer.Residue("A", "ALA", {.seq = "1", .without = {"CB"}});
    writer.Atom("C", "CB", "ALA", "A", {.seq = "1", .alternative = "A", .occupancy = a}, 1, 0, 0);
    writer.Atom("C", "CB", "ALA", "A", {.seq = "1", .alternative = "B", .occupancy = b}, 2, 0, 0);
    const Structure structure = Read(writer);
    EXPECT_EQ(LeftOutCount(structure.left_out.List(), "alternative location"), 1);
    for (const AtomSite& atom : structure.chains[0].residues[0].atoms) {
      if (atom.name == "CB") return atom.position[0];
    }
    return -1.0F;
  };
  EXPECT_EQ(position_of("0.40", "0.60"), 2);
  EXPECT_EQ(position_of("0.60", "0.40"), 1);
  EXPECT_EQ(position_of("0.50", "0.50"), 1);
}

TEST_F(StructureTest, OfSeveralComponentsAtOnePlaceTheMostOccupiedCounts) {
  CifWriter writer;
  writer.Residue("A", "SER", {.seq = "1", .alternative = "A", .occupancy = "0.3"});
  writer.Residue("A", "THR", {.seq = "1", .alternative = "B", .occupancy = "0.7"});
  writer.Sequence("A", {"SER"}).Sequence("A", {"THR"});
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.tokens.size(), 1U);
  EXPECT_EQ(entry.summary.chains[0].description, "T");
  EXPECT_EQ(LeftOutCount(entry.summary.left_out, "other component at the same place"), 6);
}

TEST_F(StructureTest, AnAtomOfOccupancyZeroIsNotResolved) {
  CifWriter writer;
  writer.Residue("A", "ALA", {.seq = "1", .without = {"CB"}});
  writer.Atom("C", "CB", "ALA", "A", {.seq = "1", .occupancy = "0.00"}, 1, 0, 0);
  const Entry entry = Tokens(writer);
  EXPECT_EQ(entry.atoms.size(), 6U);  // N CA C O CB OXT
  EXPECT_EQ(std::count_if(entry.atoms.begin(), entry.atoms.end(),
                          [](const Atom& atom) { return atom.resolved; }),
            4);
}

TEST_F(StructureTest, MissingResiduesAreTokensWithoutCoordinates) {
  CifWriter writer;
  writer.Residue("A", "ALA", {.seq = "2"});
  writer.Residue("A", "SER", {.seq = "3", .without = {"OG"}});
  writer.Sequence("A", {"MET", "ALA", "SER", "TRP"}, {1, 4});
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.tokens.size(), 4U);
  EXPECT_EQ(entry.tokens[3].residue_index, 4);
  EXPECT_EQ(entry.summary.resolved_tokens, 2);
  EXPECT_EQ(entry.summary.chains[0].unresolved_residues, 2);
  EXPECT_EQ(entry.summary.chains[0].description, "MASW");
  // Only the last residue ends in OXT: MET 8, ALA 5, SER 6, TRP 14 + OXT.
  EXPECT_EQ(entry.atoms.size(), 8U + 5U + 6U + 15U);
  EXPECT_EQ(entry.summary.resolved_atoms, 5 + 5);
  EXPECT_FALSE(entry.tokens[0].has_frame);
  EXPECT_TRUE(entry.tokens[1].has_frame);
}

TEST_F(StructureTest, SelenomethionineIsMethionine) {
  CifWriter writer;
  for (const char* atom : {"N", "CA", "C", "O", "CB", "CG", "CE"}) {
    writer.Atom("C", atom, "MSE", "A", {.seq = "1"}, static_cast<float>(atom[0]), 0, 0);
  }
  writer.Atom("SE", "SE", "MSE", "A", {.seq = "1"}, 7, 8, 9);
  writer.Sequence("A", {"MSE"});
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.tokens.size(), 1U);
  EXPECT_EQ(entry.tokens[0].restype, 12);
  const auto sulfur = std::find_if(entry.atoms.begin(), entry.atoms.end(),
                                   [](const Atom& atom) { return atom.element == 16; });
  ASSERT_NE(sulfur, entry.atoms.end());
  EXPECT_EQ(sulfur->position, (Vec3{7, 8, 9}));
}

TEST_F(StructureTest, ArginineNamesAreMadeUnambiguous) {
  CifWriter writer;
  writer.Atom("C", "CD", "ARG", "A", {.seq = "1"}, 0, 0, 0);
  writer.Atom("N", "NH1", "ARG", "A", {.seq = "1"}, 4, 0, 0);
  writer.Atom("N", "NH2", "ARG", "A", {.seq = "1"}, 2, 0, 0);
  const Structure structure = Read(writer);
  for (const AtomSite& atom : structure.chains[0].residues[0].atoms) {
    if (atom.name == "NH1") {
      EXPECT_EQ(atom.position[0], 2);
    }
    if (atom.name == "NH2") {
      EXPECT_EQ(atom.position[0], 4);
    }
  }
}

TEST_F(StructureTest, EveryKindOfMoleculeHasItsTokens) {
  CifWriter writer;
  writer.Polymer("A", {"GLY", "ALA"});
  writer.Polymer("B", {"A", "G", "C", "U"});
  writer.Polymer("C", {"DA", "5IU", "DT"});
  writer.Residue("D", "MG", {});
  writer.Residue("E", "MG", {});
  writer.Residue("F", "FTA", {});
  writer.Polymer("G", {"GLY", "ALA"});
  const Entry entry = Tokens(writer);
  std::vector<int> entities;
  std::vector<int> copies;
  for (const ChainFeatures& chain : entry.chains) {
    entities.push_back(chain.entity_id);
    copies.push_back(chain.sym_id);
  }
  EXPECT_EQ(entities, (std::vector<int>{0, 1, 2, 3, 3, 4, 0}));
  EXPECT_EQ(copies, (std::vector<int>{0, 0, 0, 0, 1, 0, 1}));
  EXPECT_EQ(entry.summary.protein_tokens, 4);
  EXPECT_EQ(entry.summary.rna_tokens, 4);
  EXPECT_EQ(entry.summary.modified_tokens, 20);  // 5IU without OP3
  EXPECT_EQ(entry.summary.dna_tokens, 22);
  EXPECT_EQ(entry.summary.ligand_tokens, 2 + 23);
  const Token& modified = entry.tokens[9];
  EXPECT_EQ(modified.restype, 29);  // U derives from T in DNA
  EXPECT_EQ(modified.residue_index, 2);
  const Token& magnesium = entry.tokens[4 - 2 + 4 + 22];
  EXPECT_EQ(magnesium.type, MoleculeType::kLigand);
  EXPECT_EQ(entry.atoms[static_cast<std::size_t>(magnesium.atom_start)].element, 12);
  EXPECT_EQ(entry.atoms[static_cast<std::size_t>(magnesium.atom_start)].charge, 2);
  EXPECT_EQ(magnesium.frame_atoms[0], kNoAtom);
  EXPECT_FALSE(magnesium.has_frame);
}

TEST_F(StructureTest, CenterAndRepresentativeAtoms) {
  CifWriter writer;
  writer.Polymer("A", {"GLY", "ALA"}).Polymer("B", {"DG", "DC"});
  const Entry entry = Tokens(writer);
  const auto name = [&](std::int32_t atom) {
    std::string text;
    for (const std::uint8_t c : entry.atoms[static_cast<std::size_t>(atom)].name_chars) {
      if (c != 0) text += static_cast<char>(c + 32);
    }
    return text;
  };
  EXPECT_EQ(name(entry.tokens[0].center_atom), "CA");
  EXPECT_EQ(name(entry.tokens[0].rep_atom), "CA");
  EXPECT_EQ(name(entry.tokens[1].rep_atom), "CB");
  EXPECT_EQ(name(entry.tokens[2].center_atom), "C1'");
  EXPECT_EQ(name(entry.tokens[2].rep_atom), "C4");
  EXPECT_EQ(name(entry.tokens[3].rep_atom), "C2");
  EXPECT_EQ(name(entry.tokens[3].frame_atoms[2]), "C4'");
}

TEST_F(StructureTest, BondsBetweenResiduesJoinTokens) {
  CifWriter writer;
  const CifWriter::Options first{.seq = "1"};
  writer.Atom("C", "CA", "ASN", "A", first, 0, 0, 0).Atom("N", "ND2", "ASN", "A", first, 9, 0, 0);
  const CifWriter::Options sugar{.auth_seq = "1"};
  writer.Atom("C", "C1", "NAG", "B", sugar, 10.4F, 0, 0)
      .Atom("O", "O4", "NAG", "B", sugar, 13, 0, 0);
  const CifWriter::Options next{.auth_seq = "2"};
  writer.Atom("C", "C1", "NAG", "B", next, 14.4F, 0, 0);
  writer.Atom("MG", "MG", "MG", "C", {.auth_seq = "9"}, 20, 0, 0);
  writer.Bond("A", "1", "ND2", "B", "1", "C1").Bond("B", "1", "O4", "B", "2", "C1");
  writer.Bond("B", "2", "C1", "C", "9", "MG");  // too long
  writer.Bond("B", "2", "O6", "C", "9", "MG");  // no coordinates
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.chains.size(), 3U);
  const auto& left_out = entry.summary.left_out;
  EXPECT_EQ(LeftOutCount(left_out, "longer than 2.4 Angstrom"), 1);
  EXPECT_EQ(LeftOutCount(left_out, "an end has no coordinates"), 1);
  // ASN is token 0; NAG without O1, which both bonds replace, has 14 heavy atoms.
  EXPECT_EQ(entry.summary.chains[1].atoms, 28);
  const std::int32_t sugar_c1 = 1;
  EXPECT_EQ(BondedTokens(entry, 0, sugar_c1), 1);
  const auto crossing =
      std::count_if(entry.token_bonds.begin(), entry.token_bonds.end(), [](const IndexPair& pair) {
        return pair.first >= 1 && pair.first < 15 && pair.second >= 15;
      });
  EXPECT_EQ(crossing, 1);
  EXPECT_EQ(entry.atom_bonds.size(), entry.token_bonds.size());  // all are of ligands
}

TEST_F(StructureTest, APeptideBondOfAModifiedResidueIsATokenBond) {
  CifWriter writer;
  writer.Residue("A", "ALA", {.seq = "1", .without = {"C"}});
  writer.Residue("A", "SAR", {.seq = "2", .without = {"N", "C"}});
  writer.Residue("A", "ALA", {.seq = "3", .without = {"N"}});
  writer.Sequence("A", {"ALA", "SAR", "ALA"});
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.tokens.size(), 2U + 5U);  // SAR: N CA C O CN
  EXPECT_EQ(BondedTokens(entry, 0, 1), 1);  // to N, unresolved and so not too far
  EXPECT_EQ(BondedTokens(entry, 3, 6), 1);  // C of SAR to the next residue
  EXPECT_TRUE(entry.atom_bonds.empty());    // no ligand
}

TEST_F(StructureTest, LigandsThatShareTheIdOfAPolymerBecomeChainsOfTheirOwn) {
  CifWriter writer;
  writer.Polymer("A", {"GLY", "ALA"});
  writer.Residue("A", "MG", {.seq = "3"}).Residue("A", "FTA", {.seq = "4"});
  const Structure structure = Read(writer);
  ASSERT_EQ(structure.chains.size(), 3U);
  EXPECT_EQ(structure.chains[1].id, "A.MG.3");
  EXPECT_EQ(structure.chains[2].id, "A.FTA.4");
}

TEST_F(StructureTest, ACapBondedToItsNeighbourBelongsToThePolymer) {
  const auto ala = dictionary_.Find("ALA");
  const Vec3 c = ala->atoms[static_cast<std::size_t>(ala->Find("C"))].position;
  CifWriter writer;  // the second residue stands 20 Angstrom along x
  writer.Polymer("A", {"GLY", "ALA"});
  writer.Atom("N", "N", "NH2", "A", {.seq = "3"}, c[0] + 21.3F, c[1], c[2]);
  EXPECT_EQ(Read(writer).chains.size(), 2U);
  writer.Bond("A", "2", "C", "A", "3", "N");
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.chains.size(), 1U);
  EXPECT_EQ(entry.tokens.size(), 3U);
  EXPECT_EQ(BondedTokens(entry, 1, 2), 1);
  EXPECT_EQ(entry.atoms.size(), 4U + 5U + 1U);  // no OXT: its carbon is bonded
}

TEST_F(StructureTest, UnknownResidues) {
  CifWriter writer;
  writer.Residue("A", "UNK", {.seq = "1"}).Residue("A", "GLY", {.seq = "2"});
  const Entry entry = Tokens(writer);
  ASSERT_EQ(entry.tokens.size(), 2U);
  EXPECT_EQ(entry.tokens[0].restype, 20);
}

TEST_F(StructureTest, AtomsThatTheComponentDoesNotHaveAreCounted) {
  CifWriter writer;
  writer.Polymer("A", {"GLY"});
  writer.Atom("C", "C99", "GLY", "A", {.seq = "1"}, 0, 0, 0);
  const Entry entry = Tokens(writer);
  EXPECT_EQ(LeftOutCount(entry.summary.left_out, "not in component GLY"), 1);
}

}  // namespace
}  // namespace megafold::data
