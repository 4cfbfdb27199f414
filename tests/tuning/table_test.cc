#include "tuning/table.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "megafold/core/error.h"

namespace megafold::tuning {
namespace {

Table Example() {
  return {.device = "Some GPU, sm_90",
          .driver = "CUDA 13.0",
          .megafold = "0.1.0",
          .commit = "abc",
          .date = "2026-01-02T03:04:05Z",
          .command = "megafold tune --config \"a b.yaml\"",
          .entries = {{.problem = "evo_attention forward float32 batch=1",
                       .implementation = "b",
                       .standard = "a",
                       .measured = "q [1, 2]",
                       .times_ms = {{"a", 2.5}, {"b", 0.125}},
                       .failed = {{"c", "said \"no\""}}},
                      {.problem = "evo_attention backward float32 batch=1",
                       .implementation = "a",
                       .standard = "a",
                       .measured = "",
                       .times_ms = {{"a", 1}},
                       .failed = {}}}};
}

std::string Replaced(const std::string& text, const std::string& what, const std::string& with) {
  const std::size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return std::string(text).replace(at, what.size(), with);
}

TEST(Table, ReadsBackWhatItWrote) {
  const Table table = Example();
  const std::string text = ToJson(table);
  EXPECT_EQ(text.back(), '\n');
  const Table again = ParseTable(text, "t.json");
  EXPECT_EQ(ToJson(again), text);
  ASSERT_EQ(again.entries.size(), 2U);
  EXPECT_EQ(again.device, table.device);
  EXPECT_EQ(again.command, table.command);
  EXPECT_EQ(again.entries[0].times_ms, table.entries[0].times_ms);
  EXPECT_EQ(again.entries[0].failed, table.entries[0].failed);
  EXPECT_EQ(again.entries[0].standard, "a");
}

TEST(Table, ANameThatIsNoUtf8IsStillWritten) {
  Table table = Example();
  table.device = "bad \xff name";
  EXPECT_NO_THROW(ParseTable(ToJson(table), "t.json"));
}

// Every damage is kDataCorrupt, with the file's name and what is wrong.
TEST(Table, DamageIsNamed) {
  const std::string good = ToJson(Example());
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "is not JSON"},
      {good.substr(0, good.size() / 2), "is not JSON"},
      {"[]", "is not an object"},
      {"{}", "has no 'format'"},
      {Replaced(good, "tuning 1", "tuning 2"), "has the format 'megafold tuning 2'"},
      {Replaced(good, "\"commit\"", "\"comit\""), "has no 'commit'"},
      {Replaced(good, "\"Some GPU, sm_90\"", "7"), "'device' is not a text"},
      {Replaced(good, "2.5", "-2.5"), "entry 0 'times_ms' of 'a' is not a positive number"},
      {Replaced(good, "2.5", "\"2.5\""), "entry 0 'times_ms' of 'a' is not a positive number"},
      {Replaced(good, "\"implementation\"", "\"implementatoin\""),
       "entry 0 has no 'implementation'"},
      {Replaced(good, "evo_attention backward", "evo_attention forward"),
       "entry 1 repeats the problem"},
      {"{\"format\": \"megafold tuning 1\", \"device\": \"\", \"driver\": \"\", \"megafold\": "
       "\"\", \"commit\": \"\", \"date\": \"\", \"command\": \"\", \"entries\": 3}",
       "'entries' is not an array"}};
  for (const auto& [text, expected] : cases) {
    try {
      ParseTable(text, "t.json");
      ADD_FAILURE() << "accepted: " << expected;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDataCorrupt);
      const std::string what = error.what();
      EXPECT_TRUE(what.starts_with("t.json: ")) << what;
      EXPECT_NE(what.find(expected), std::string::npos) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    }
  }
}

TEST(Table, AFileThatIsMissingOrHugeIsRefusedBeforeItIsRead) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / "megafold_tuning_table_test";
  std::filesystem::create_directories(folder);
  const auto code = [](const std::filesystem::path& file) {
    try {
      ReadTable(file);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code(folder / "none.json"), ErrorCode::kNotFound);
  EXPECT_EQ(code(folder), ErrorCode::kNotFound);
  const std::filesystem::path huge = folder / "huge.json";
  std::ofstream(huge).put('{');
  std::filesystem::resize_file(huge, std::uintmax_t{1} << 40);  // sparse
  EXPECT_EQ(code(huge), ErrorCode::kDataCorrupt);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace megafold::tuning
