// Files that are torn, contradict themselves, or are damaged at random.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "data/random.h"
#include "megafold/core/error.h"
#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

class BadInput : public testing::Test {
 protected:
  // The error of loading the only entry, "bad", from this text.
  std::string LoadError(const std::string& cif) {
    folder_.Write("mmcif/bad.cif", cif);
    return ErrorOf([&] { Dataset(folder_.Config()).Load(0, 1); });
  }
  std::string File() const { return (folder_.path() / "mmcif/bad.cif").string(); }

  static std::string GoodText() { return CifWriter().Polymer("A", {"GLY", "ALA", "SER"}).Text(); }

  TempFolder folder_;
};

TEST_F(BadInput, EveryTearOfAnMmcifIsFound) {
  const std::string good = GoodText();
  ASSERT_EQ(LoadError(good), "no error");
  // A cut right after a '#' line leaves whole categories: no format can tell it from a whole file.
  for (std::size_t size = 0; size + 3 < good.size(); size += 7) {
    const std::string torn = good.substr(0, size);
    const bool at_separator = torn.ends_with("\n#") || torn.ends_with("\n#\n");
    if (at_separator && torn.find("_atom_site.") != std::string::npos) continue;
    const std::string error = LoadError(torn);
    EXPECT_NE(error.find(File()), std::string::npos) << "cut at " << size << ": " << error;
  }
}

// Bytes changed, removed and doubled at random: either the entry still loads or an Error says why;
// nothing else may happen.
TEST_F(BadInput, RandomDamageGivesAnErrorOrAnExample) {
  const std::string good = CifWriter()
                               .Polymer("A", {"GLY", "ALA", "SER"})
                               .Residue("B", "NAG", {.auth_seq = "7"})
                               .Bond("A", "3", "OG", "B", "7", "C1")
                               .Text();
  const std::string alignment = ">q\nGAS\n>a_HUMAN\nGxxA-\n>b OX=9\n-AS\n";
  int loaded = 0;
  int refused = 0;
  for (std::uint64_t round = 0; round < 300; ++round) {
    Random random(round, RandomUse::kCrop);
    std::string cif = good;
    std::string a3m = alignment;
    std::string& text = round % 3 == 0 ? a3m : cif;
    for (std::uint64_t change = 0; change < 1 + round % 4; ++change) {
      const std::size_t at = random.Below(text.size() - 8);
      switch (random.Below(3)) {
        case 0:
          text[at] = static_cast<char>(random.Below(256));
          break;
        case 1:
          text.erase(at, 1 + random.Below(8));
          break;
        default:
          text.insert(at, text.substr(random.Below(text.size()), 1 + random.Below(40)));
      }
    }
    folder_.Write("msa/badA.a3m", a3m);
    folder_.Write("mmcif/bad.cif", cif);
    try {
      ExpectContract(Dataset(folder_.Config()).Load(0, round));
      ++loaded;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(folder_.path().string()), std::string::npos);
      ++refused;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "round " << round << ": " << error.what() << "\n" << cif << a3m;
    }
  }
  EXPECT_GT(loaded, 20);
  EXPECT_GT(refused, 60);
}

TEST_F(BadInput, ATornFileWithoutSeparatorsIsToldByItsSequence) {
  std::string text = GoodText();
  for (auto at = text.find("#\n"); at != std::string::npos; at = text.find("#\n"))
    text.erase(at, 2);
  ASSERT_EQ(LoadError(text), "no error");
  const auto last = text.find("ATOM C N . SER");
  ASSERT_NE(last, std::string::npos);
  const auto end = text.find("loop_\n_pdbx_poly");
  text.erase(last, end - last);
  EXPECT_EQ(LoadError(text), File() +
                                 ": chain A, residue 3 (SER) is listed as observed but has no "
                                 "atoms; is the file torn?");
}

TEST_F(BadInput, TornGzip) {
  folder_.Write("mmcif/bad.cif.gz", GoodText());
  const fs::path file = folder_.path() / "mmcif/bad.cif.gz";
  fs::resize_file(file, fs::file_size(file) - 30);
  EXPECT_NE(ErrorOf([&] { Dataset(folder_.Config()).Load(0, 1); }).find("torn gzip file"),
            std::string::npos);
}

TEST_F(BadInput, WrongNumbersAndMissingColumns) {
  std::string text = GoodText();
  text.replace(text.find("ATOM C CA . ALA A 2 ") + 20, 2, "xx");
  EXPECT_NE(LoadError(text).find(File() + ": chain A, atom CA of ALA: _atom_site.Cartn_x is 'xx"),
            std::string::npos)
      << LoadError(text);
  std::string not_a_number = GoodText();
  const auto nan_at = not_a_number.find("ATOM C CA . ALA A 2 ") + 20;
  not_a_number.replace(nan_at, not_a_number.find(' ', nan_at) - nan_at, "nan");
  EXPECT_NE(LoadError(not_a_number).find("_atom_site.Cartn_x is 'nan', expected a number"),
            std::string::npos);
  std::string renamed = GoodText();
  renamed.replace(renamed.find("_atom_site.Cartn_y"), 18, "_atom_site.Cartn_q");
  EXPECT_EQ(LoadError(renamed), File() + ": no _atom_site.Cartn_y, expected coordinates");
  EXPECT_EQ(LoadError(""), File() + ": empty file, expected mmCIF");
  EXPECT_EQ(LoadError("data_x\n#\n"), File() + ": no _atom_site.type_symbol, expected coordinates");
}

TEST_F(BadInput, AnUnknownComponentIsNamedWithChainAndResidue) {
  std::string text = GoodText();
  for (auto at = text.find("ALA"); at != std::string::npos; at = text.find("ALA")) {
    text.replace(at, 3, "QQQ");
  }
  EXPECT_EQ(LoadError(text), File() + ": chain A, residue 2 (QQQ): component 'QQQ' is not in " +
                                 (DemoRoot() / "ccd").string());
}

TEST_F(BadInput, ASequenceThatContradictsTheAtoms) {
  CifWriter writer;
  writer.Residue("A", "GLY", {.seq = "1"}).Sequence("A", {"ALA"});
  EXPECT_EQ(LoadError(writer.Text()),
            File() + ": chain A, residue 1 (GLY): the file's sequence has ALA there");
}

TEST_F(BadInput, OnlyWater) {
  CifWriter writer;
  writer.Atom("O", "O", "HOH", "A", {.auth_seq = "1"}, 0, 0, 0);
  EXPECT_EQ(LoadError(writer.Text()), File() +
                                          ": no polymer or ligand is left (only water, "
                                          "hydrogens or unknown ligands)");
}

TEST_F(BadInput, AnAlignmentOfTheWrongLengthNamesFileChainAndLength) {
  folder_.Write("msa/badA_hits.a3m", ">q\nGASG\n");
  EXPECT_EQ(LoadError(GoodText()),
            (folder_.path() / "msa/badA_hits.a3m").string() +
                ": chain A, row 1 ('q'): the query has 4 columns, expected 3 as the chain has "
                "residues");
  folder_.Write("msa/badA_hits.a3m", ">q\nGAS\n>r\nGAS\n>s\nG-S\n");
  folder_.Write("msa/badAA.a3m", "not for chain A");
  EXPECT_EQ(LoadError(GoodText()), "no error");
}

TEST_F(BadInput, Folders) {
  const std::string root = folder_.path().string();
  const auto error = [&](const DataConfig& config) {
    return ErrorOf([&] { const Dataset dataset(config); });
  };
  DataConfig config = folder_.Config();
  EXPECT_EQ(error(config), root + "/mmcif: no such folder, expected the entries' .cif files");
  folder_.Write("mmcif/notes.txt", "");
  EXPECT_EQ(error(config), root + "/mmcif: empty folder, expected .cif or .cif.gz files");
  folder_.Write("mmcif/one.cif", GoodText());
  EXPECT_EQ(error(config), "no error");
  config.entries = {"two"};
  EXPECT_EQ(error(config),
            root + "/mmcif: no file for entry 'two', expected two.cif or two.cif.gz");
  config = folder_.Config();
  config.ccd = "";
  EXPECT_EQ(error(config), root +
                               "/ccd: no such component dictionary, expected a folder of .cif "
                               "files or one .cif file");
  config = folder_.Config();
  config.crop = {0, 0, 0};
  EXPECT_EQ(error(config), "data.crop: every weight is 0, expected a positive one");
  folder_.Write("mmcif/one.cif.gz", GoodText());
  EXPECT_NE(error(folder_.Config()).find("entry 'one' is there twice"), std::string::npos);
}

}  // namespace
}  // namespace megafold::data
