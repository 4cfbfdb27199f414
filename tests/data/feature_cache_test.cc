// Entries kept on the disk: the same content back, and nothing stale or torn.
#include "data/cache/feature_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "data/cache/entry_bytes.h"
#include "data/cache/hash.h"
#include "data/dataset.h"
#include "data/features/build_entry.h"
#include "data/features/example.h"
#include "data/io/text_file.h"
#include "megafold/core/error.h"
#include "tests/data/fixtures.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

// 2q2k has everything that an entry can hold: ligand, modified residues, alignments, paired chains.
Entry DemoEntry() {
  const ComponentDictionary dictionary(DemoRoot() / "ccd");
  return BuildEntry("2q2k", DemoRoot() / "mmcif" / "2q2k.cif.gz", dictionary,
                    AlignmentFolder(DemoRoot() / "msa"), 16384);
}

void ExpectSame(const Example& a, const Example& b) {
  EXPECT_EQ(a.entry_id, b.entry_id);
  ASSERT_EQ(a.features.size(), b.features.size());
  for (const auto& [name, array] : a.features) {
    const Array& other = b.features.at(name);
    EXPECT_EQ(array.shape(), other.shape()) << name;
    EXPECT_TRUE(std::ranges::equal(array.bytes(), other.bytes())) << name;
  }
}

void WriteBytes(const fs::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<long>(bytes.size()));
}

TEST(HashBytes, SeesEveryByteAndTheLength) {
  const std::string text = "0123456789abcdefghi";
  const std::uint64_t hash = HashBytes(text, 1);
  EXPECT_EQ(hash, HashBytes(std::string(text), 1));
  EXPECT_NE(hash, HashBytes(text, 2));
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] ^= 1;
    EXPECT_NE(hash, HashBytes(changed, 1)) << i;
  }
  EXPECT_NE(HashBytes("", 1), HashBytes(std::string(1, '\0'), 1));
  EXPECT_NE(HashBytes(std::string(7, '\0'), 1), HashBytes(std::string(8, '\0'), 1));
}

TEST(EntryBytes, ComeBackWhole) {
  const Entry entry = DemoEntry();
  const std::string bytes = EntryToBytes(entry);
  const Entry back = EntryFromBytes(bytes);
  ExpectSame(MakeExample(entry, {}, 3), MakeExample(back, {}, 3));
  EXPECT_EQ(ToText(entry.summary), ToText(back.summary));
  EXPECT_EQ(EntryToBytes(back), bytes);
}

TEST(EntryBytes, TornOnesAreErrors) {
  const std::string bytes = EntryToBytes(DemoEntry());
  for (std::size_t size = 0; size < bytes.size(); size += 997) {
    EXPECT_THROW(EntryFromBytes(std::string_view(bytes).substr(0, size)), Error) << size;
  }
  EXPECT_THROW(EntryFromBytes(bytes + "x"), Error);
  // A count beyond everything is refused before anything is allocated for it.
  EXPECT_THROW(EntryFromBytes(std::string(64, '\xff')), Error);
}

TEST(FeatureCache, GivesBackWhatWasStoredUnderTheSameKeyAlone) {
  const TempFolder folder;
  const FeatureCache cache(folder.path() / "cache");
  const Entry entry = DemoEntry();
  EXPECT_FALSE(cache.Find("2q2k", 5).has_value());
  cache.Store("2q2k", 5, entry);
  const auto found = cache.Find("2q2k", 5);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(EntryToBytes(*found), EntryToBytes(entry));
  EXPECT_FALSE(cache.Find("2q2k", 6).has_value());
  EXPECT_FALSE(cache.Find("2q2", 5).has_value());
  for (const auto& file : fs::directory_iterator(folder.path() / "cache")) {
    EXPECT_EQ(file.path().filename(), "2q2k.features") << "left behind";
  }
}

TEST(FeatureCache, ReadsNothingTorn) {
  const TempFolder folder;
  const FeatureCache cache(folder.path());
  cache.Store("2q2k", 5, DemoEntry());
  const fs::path file = folder.path() / "2q2k.features";
  const std::string whole = ReadBytes(file);
  for (std::size_t at = 0; at < whole.size(); at += at < 64 ? 1 : 613) {
    std::string changed = whole;
    changed[at] ^= 0x10;
    WriteBytes(file, changed);
    EXPECT_FALSE(cache.Find("2q2k", 5).has_value()) << "byte " << at;
    WriteBytes(file, whole.substr(0, at));
    EXPECT_FALSE(cache.Find("2q2k", 5).has_value()) << "cut at " << at;
  }
  WriteBytes(file, whole);
  EXPECT_TRUE(cache.Find("2q2k", 5).has_value());
}

TEST(FeatureCache, AFolderThatCannotBeIsAnError) {
  const TempFolder folder;
  folder.Write("file", "x");
  DataConfig config = folder.Config();
  folder.Write("mmcif/a.cif", CifWriter().Polymer("A", {"GLY"}).Text());
  config.feature_cache = (folder.path() / "file").string();
  EXPECT_NE(ErrorOf([&] { Dataset{config}; }).find("data.feature_cache: "), std::string::npos);
}

TEST(FeatureCache, ADatasetReadsItInsteadOfTheFilesAndNoticesEveryChange) {
  const TempFolder folder;
  folder.Write("mmcif/a.cif", CifWriter().Polymer("A", {"GLY", "ALA"}).Text());
  DataConfig config = folder.Config();
  config.feature_cache = (folder.path() / "cache").string();
  const fs::path file = folder.path() / "cache" / "a.features";
  const auto rows = [&] { return Dataset(config).Load(0, 1).features.at("msa").shape(); };
  const Example first = Dataset(config).Load(0, 1);
  const std::string stored = ReadBytes(file);
  ExpectSame(Dataset(config).Load(0, 1), first);
  EXPECT_EQ(ReadBytes(file), stored);

  // What the cache holds is what is used: another entry under the right key shows.
  std::uint64_t key = 0;
  std::memcpy(&key, stored.data() + 16, sizeof(key));  // behind magic and format
  FeatureCache(folder.path() / "cache").Store("a", key, DemoEntry());
  EXPECT_EQ(Dataset(config).Load(0, 1).entry_id, "2q2k");

  folder.Write("msa/aA.a3m", ">query\nGA\n>other\nGG\n");
  EXPECT_EQ(rows(), (std::vector<std::int64_t>{2, 2}));
  folder.Write("msa/aA.a3m", ">query\nGA\n>other\nGG\n>more\nAA\n");
  EXPECT_EQ(rows(), (std::vector<std::int64_t>{3, 2}));
  config.max_msa_rows = 2;
  EXPECT_EQ(rows(), (std::vector<std::int64_t>{2, 2}));
  folder.Write("mmcif/a.cif", CifWriter().Polymer("A", {"GLY", "ALA", "SER"}).Text());
  folder.Write("msa/aA.a3m", ">query\nGAS\n");
  EXPECT_EQ(rows(), (std::vector<std::int64_t>{1, 3}));
}

}  // namespace
}  // namespace megafold::data
