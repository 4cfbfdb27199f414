// Whole folders: the shipped entries, larger ones where they are at hand, the loader.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>

#include "data/ccd/dictionary.h"
#include "data/io/text_file.h"
#include "data/loader.h"
#include "megafold/core/error.h"
#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

DataConfig DemoConfig() {
  DataConfig config;
  config.root = DemoRoot().string();
  return config;
}

TEST(DemoData, EveryEntryGoesThroughWhole) {
  // Tokens, tokens with coordinates, atoms with coordinates.
  const std::map<std::string, std::array<std::int64_t, 3>> expected = {
      {"1kd8", {228, 227, 1704}}, {"1pzp", {309, 309, 2076}}, {"1ubq", {76, 76, 602}},
      {"2q2k", {213, 162, 1184}}, {"3u8v", {187, 167, 1245}}, {"3zee", {84, 84, 670}}};
  DataConfig config = DemoConfig();
  config.crop_tokens = 0;
  const Dataset dataset(config);
  ASSERT_EQ(dataset.size(), expected.size());
  for (std::size_t i = 0; i < dataset.size(); ++i) {
    const Example example = dataset.Load(i, 7);
    ExpectContract(example);
    const EntrySummary summary = dataset.Inspect(i);
    EXPECT_EQ((std::array{summary.tokens, summary.resolved_tokens, summary.resolved_atoms}),
              expected.at(dataset.id(i)))
        << dataset.id(i);
    EXPECT_EQ(example.features.at("restype").shape()[0], summary.tokens);
    EXPECT_EQ(
        summary.protein_tokens + summary.rna_tokens + summary.dna_tokens + summary.ligand_tokens,
        summary.tokens);
  }
}

TEST(DemoData, CropsOfEveryKindKeepTheContract) {
  DataConfig config = DemoConfig();
  config.crop_tokens = 48;
  config.msa_rows = 4;
  const Dataset dataset(config);
  for (std::size_t i = 0; i < dataset.size(); ++i) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) ExpectContract(dataset.Load(i, seed));
  }
}

TEST(DemoData, SummaryAsText) {
  DataConfig config = DemoConfig();
  config.entries = {"2q2k"};
  const std::string text = ToText(Dataset(config).Inspect(0));
  for (const char* part : {"X-RAY DIFFRACTION, resolution 3.00 A, released 2008-02-05",
                           "protein 140, rna 0, dna 58, ligand 15; in modified residues 40",
                           "70 residues (25 without coordinates)", "no alignment: the query alone",
                           "21 distinct of 48 rows, 15 with a species", "chain D: ligand", "EPE"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

// The larger entries lie beside the repository on some machines only.
fs::path SharedData() {
  if (const char* folder = std::getenv("MEGAFOLD_SHARED_DATA")) return folder;
  return fs::path(MEGAFOLD_SOURCE_DIR).parent_path() / "shared" / "data";
}

TEST(SharedData, LargerEntriesGoThroughWhole) {
  const fs::path root = SharedData() / "pdb";
  if (!fs::is_directory(root / "mmcif")) {
    GTEST_SKIP() << root << " is not there; set MEGAFOLD_SHARED_DATA to the folder that holds pdb/";
  }
  struct Expected {
    std::int64_t resolved_tokens, resolved_atoms, rows_read_of_first_protein;
  };
  const std::map<std::string, Expected> expected = {{"209d-assembly1", {78, 408, 2}},
                                                    {"721p-assembly1", {398, 2708, 15953}},
                                                    {"7a4d-assembly1", {547, 4155, 12096}}};
  DataConfig config;
  config.root = root.string();
  config.ccd = (DemoRoot() / "ccd").string();
  config.crop_tokens = 0;
  config.msa_rows = 64;
  const Dataset dataset(config);
  for (const auto& [id, counts] : expected) {
    config.entries = {id};
    const Dataset one(config);
    ExpectContract(one.Load(0, 3));
    const EntrySummary summary = one.Inspect(0);
    EXPECT_EQ(summary.resolved_tokens, counts.resolved_tokens) << id;
    EXPECT_EQ(summary.resolved_atoms, counts.resolved_atoms) << id;
    EXPECT_LE(summary.msa_rows, 16384) << id;
    const auto protein = std::find_if(summary.chains.begin(), summary.chains.end(),
                                      [](const auto& chain) { return chain.type == "protein"; });
    ASSERT_NE(protein, summary.chains.end());
    EXPECT_EQ(protein->msa_rows_read, counts.rows_read_of_first_protein) << id;
  }
}

TEST(Dictionary, AFolderOfFilesAndOneFileOfBlocksAreTheSame) {
  const ComponentDictionary blocks(DemoRoot() / "ccd");
  const std::string all = ReadTextFile(DemoRoot() / "ccd" / "components.cif.gz");
  TempFolder folder;
  const auto start = all.find("data_FTA");
  const std::string text = all.substr(start, all.find("\ndata_", start) - start + 1);
  folder.Write("ccd/FTA.cif", text);
  folder.Write("ccd/GNP.cif.gz", text);
  const ComponentDictionary files(folder.path() / "ccd");
  const auto a = files.Find("FTA");
  const auto b = blocks.Find("FTA");
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->bonds, b->bonds);
  ASSERT_EQ(a->atoms.size(), b->atoms.size());
  for (std::size_t i = 0; i < a->atoms.size(); ++i) {
    EXPECT_EQ(a->atoms[i].name, b->atoms[i].name);
    EXPECT_EQ(a->atoms[i].position, b->atoms[i].position);
  }
  EXPECT_EQ(files.Find("MG"), nullptr);
  EXPECT_EQ(files.Find("../ccd/FTA"), nullptr);
  EXPECT_NE(ErrorOf([&] { files.Find("GNP"); }).find("describes component 'FTA', expected 'GNP'"),
            std::string::npos);
}

TEST(Dictionary, FallsBackToTheModelsCoordinates) {
  TempFolder folder;
  const auto block = [](const std::string& ideal_of_second) {
    return "data_LIG\n_chem_comp.id LIG\n_chem_comp.type NON-POLYMER\nloop_\n"
           "_chem_comp_atom.atom_id\n_chem_comp_atom.type_symbol\n_chem_comp_atom.charge\n"
           "_chem_comp_atom.model_Cartn_x\n_chem_comp_atom.model_Cartn_y\n"
           "_chem_comp_atom.model_Cartn_z\n_chem_comp_atom.pdbx_model_Cartn_x_ideal\n"
           "_chem_comp_atom.pdbx_model_Cartn_y_ideal\n_chem_comp_atom.pdbx_model_Cartn_z_ideal\n"
           "C1 C 0 1 2 3 4 5 6\nO1 O -1 1 2 4 " +
           ideal_of_second + "\nH1 H 0 ? ? ? ? ? ?\n";
  };
  folder.Write("a/LIG.cif", block("4 5 7"));
  folder.Write("b/LIG.cif", block("? ? ?"));
  EXPECT_EQ(ComponentDictionary(folder.path() / "a").Find("LIG")->atoms[0].position,
            (Vec3{4, 5, 6}));
  const auto model = ComponentDictionary(folder.path() / "b").Find("LIG");
  ASSERT_EQ(model->atoms.size(), 2U);
  EXPECT_EQ(model->atoms[0].position, (Vec3{1, 2, 3}));
  EXPECT_EQ(model->atoms[1].charge, -1);
}

std::string Digest(const Batch& batch) {
  std::string bytes;
  for (const std::string& id : batch.entry_ids) bytes += id + " ";
  for (const auto& [name, array] : batch.features) {
    bytes += name;
    const auto span = array.bytes();
    bytes.append(reinterpret_cast<const char*>(span.data()), span.size());
  }
  return bytes;
}

TEST(LoaderTest, StepsAreTheSameForAnyNumberOfThreadsAndAnyStart) {
  DataConfig config = DemoConfig();
  config.crop_tokens = 24;
  std::vector<std::string> digests;
  {
    const Dataset dataset(config);
    Loader loader(dataset, 2, 11);
    for (int step = 0; step < 8; ++step) digests.push_back(Digest(loader.Next()));
    EXPECT_EQ(loader.next_step(), 8U);
    EXPECT_GE(loader.wait_seconds(), 0.0);
    EXPECT_TRUE(loader.skipped().empty());
  }
  config.loader_threads = 4;
  config.prefetch = 5;
  config.cache_mib = 0;
  const Dataset dataset(config);
  Loader resumed(dataset, 2, 11, 3);
  for (std::size_t step = 3; step < 8; ++step) EXPECT_EQ(Digest(resumed.Next()), digests[step]);
  Loader other(dataset, 2, 12);
  EXPECT_NE(Digest(other.Next()), digests[0]);
  EXPECT_EQ(ErrorOf([&] { Loader(dataset, 0, 1); }),
            "Loader: batch size is 0, expected at least 1");
}

TEST(LoaderTest, APassDrawsEveryEntryOnceInAnOrderOfItsOwn) {
  DataConfig config = DemoConfig();
  config.crop_tokens = 8;
  const Dataset dataset(config);
  Loader loader(dataset, 1, 4);
  std::vector<std::vector<std::string>> passes(6);
  for (auto& pass : passes) {
    for (std::size_t i = 0; i < dataset.size(); ++i) pass.push_back(loader.Next().entry_ids[0]);
  }
  const auto first = passes[0];
  EXPECT_TRUE(std::any_of(passes.begin(), passes.end(), [&](auto& p) { return p != first; }));
  for (auto& pass : passes) {
    std::sort(pass.begin(), pass.end());
    for (std::size_t i = 0; i < dataset.size(); ++i) EXPECT_EQ(pass[i], dataset.id(i));
  }
}

TEST(LoaderTest, BadEntriesAreSkippedCountedAndReplaced) {
  TempFolder folder;
  folder.Write("mmcif/bad.cif", "data_x\n#\n");
  folder.Write("mmcif/good1.cif", CifWriter().Polymer("A", {"GLY", "ALA"}).Text());
  folder.Write("mmcif/good2.cif", CifWriter().Polymer("A", {"SER", "ALA", "GLY"}).Text());
  const Dataset dataset(folder.Config());
  std::vector<std::string> ids;
  Loader loader(dataset, 1, 8);
  for (int step = 0; step < 12; ++step) ids.push_back(loader.Next().entry_ids[0]);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), "bad"), 0);
  const auto skipped = loader.skipped();
  ASSERT_EQ(skipped.size(), 1U);
  EXPECT_EQ(skipped[0].entry_id, "bad");
  EXPECT_GE(skipped[0].times, 4);
  EXPECT_EQ(skipped[0].reason, (folder.path() / "mmcif/bad.cif").string() +
                                   ": no _atom_site.type_symbol, expected coordinates");
  // The replacement does not depend on where the run began.
  Loader resumed(dataset, 1, 8, 5);
  for (std::size_t step = 5; step < 12; ++step) EXPECT_EQ(resumed.Next().entry_ids[0], ids[step]);
}

TEST(LoaderTest, WithoutAGoodEntryNextThrows) {
  TempFolder folder;
  folder.Write("mmcif/bad.cif", "data_x\n#\n");
  const Dataset dataset(folder.Config());
  Loader loader(dataset, 1, 8);
  EXPECT_EQ(ErrorOf([&] { loader.Next(); }),
            "none of the 1 entries of " + folder.path().string() +
                " can be read; the first error: " + folder.path().string() +
                "/mmcif/bad.cif: no _atom_site.type_symbol, expected coordinates");
}

}  // namespace
}  // namespace megafold::data
