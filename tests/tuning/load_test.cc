// Tables that are there, missing, damaged or made elsewhere.
#include "tuning/load.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "megafold/core/error.h"
#include "megafold/ops/tuning.h"
#include "tests/tuning/attention.h"
#include "tuning/table.h"

namespace megafold::tuning {
namespace {

namespace fs = std::filesystem;
constexpr Device kCpu{DeviceType::kCpu, 0};

class LoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / StrCat("megafold_tuning_load_test_", getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override {
    unsetenv("MEGAFOLD_TUNING");
    ops::SetTunedChoices(kCpu, {});
    fs::remove_all(folder_);
  }

  void Name(const fs::path& path) { setenv("MEGAFOLD_TUNING", path.c_str(), 1); }

  fs::path Write(const std::string& name, const std::string& device,
                 const std::string& implementation, const std::string& problem) {
    Table table;
    table.device = device;
    table.entries.push_back({.problem = problem,
                             .implementation = implementation,
                             .standard = "cpu simd",
                             .measured = "",
                             .times_ms = {},
                             .failed = {}});
    std::ofstream(folder_ / name) << ToJson(table);
    return folder_ / name;
  }

  fs::path folder_;
  test::Attention attention_;
  std::string here_ = ops::DescribeDevice(kCpu).name;
};

// Reads the tables and follows them.
TableReport Follow() {
  TableReport report = ReadTables(kCpu);
  ops::SetTunedChoices(kCpu, report.choices);
  return report;
}

TEST_F(LoadTest, ATableChangesTheImplementation) {
  ASSERT_FALSE(attention_.UsesReference());
  Name(Write("a.json", here_, "cpu ref", attention_.problem()));
  const TableReport report = Follow();
  EXPECT_TRUE(report.problems.empty()) << report.problems.front();
  ASSERT_EQ(report.used.size(), 1U);
  EXPECT_NE(report.used[0].find("a.json: 1 entries"), std::string::npos) << report.used[0];
  EXPECT_TRUE(attention_.UsesReference());
}

TEST_F(LoadTest, ATableOfAnotherDeviceSaysNothing) {
  Name(Write("a.json", here_ + " Pro", "cpu ref", attention_.problem()));
  const TableReport report = Follow();
  EXPECT_TRUE(report.problems.empty());
  EXPECT_TRUE(report.used.empty());
  EXPECT_FALSE(attention_.UsesReference());
}

TEST_F(LoadTest, AFolderIsReadInOrderAndDamageInItIsReportedAndPassedOver) {
  Write("a.json", here_, "cpu simd", attention_.problem());
  Write("b.json", here_, "cpu ref", attention_.problem());
  std::ofstream(folder_ / "c.json") << "{\"format\": ";
  std::ofstream(folder_ / "notes.txt") << "no table";
  Name(folder_);
  const TableReport report = Follow();
  EXPECT_EQ(report.used.size(), 2U);
  ASSERT_EQ(report.problems.size(), 1U);
  EXPECT_NE(report.problems[0].find("c.json: is not JSON"), std::string::npos);
  EXPECT_NE(report.problems[0].find("this table is ignored"), std::string::npos);
  EXPECT_TRUE(attention_.UsesReference()) << "the last file rules";
}

TEST_F(LoadTest, UnknownNamesAreReportedAndIgnored) {
  Write("a.json", here_, "cpu warp", attention_.problem());
  Write("b.json", here_, "cpu ref", "softmax forward float32");
  Name(folder_);
  const TableReport report = Follow();
  ASSERT_EQ(report.problems.size(), 2U);
  EXPECT_NE(report.problems[0].find("'cpu warp'"), std::string::npos) << report.problems[0];
  EXPECT_NE(report.problems[1].find("'softmax'"), std::string::npos) << report.problems[1];
  EXPECT_FALSE(attention_.UsesReference());
}

TEST_F(LoadTest, AMissingFileIsReported) {
  Name(folder_ / "none.json");
  const TableReport report = Follow();
  ASSERT_EQ(report.problems.size(), 1U);
  EXPECT_NE(report.problems[0].find("none.json', which does not exist"), std::string::npos);
}

TEST_F(LoadTest, OffMeansNone) {
  Name("off");
  std::vector<std::string> problems;
  EXPECT_TRUE(TableFiles(&problems).empty());
  EXPECT_TRUE(problems.empty());
}

TEST_F(LoadTest, ShippedTablesAreFoundAndGood) {
  std::vector<std::string> problems;
  std::vector<std::string> names;
  for (const fs::path& file : TableFiles(&problems)) {
    EXPECT_NO_THROW(ReadTable(file)) << file;
    names.push_back(file.filename());
  }
  EXPECT_TRUE(problems.empty());
  std::vector<std::string> expected;
  for (const auto& entry : fs::directory_iterator(fs::path(MEGAFOLD_SOURCE_DIR) / "tuning")) {
    if (entry.path().extension() == ".json") expected.push_back(entry.path().filename());
  }
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names, expected) << "the build tree shows the repository's tables";
}

// One test for all of it: the second device index stands for a second device, as once is for ever.
TEST_F(LoadTest, OnceMeansOnceAndAProgramsOwnChoicesStay) {
  const Device other{DeviceType::kCpu, 1};
  Name(Write("good.json", here_, "cpu ref", attention_.problem()));
  const std::vector<ops::TunedChoice> own{{attention_.problem(), "cpu simd"}};
  ops::SetTunedChoices(other, own);
  LoadTablesOnce(other);
  EXPECT_EQ(ops::TunedChoices(other), own);
  ops::SetTunedChoices(other, {});

  std::ofstream(folder_ / "torn.json") << "{";
  Name(folder_);
  testing::internal::CaptureStderr();
  LoadTablesOnce(kCpu);
  LoadTablesOnce(kCpu);
  const std::string printed = testing::internal::GetCapturedStderr();
  EXPECT_TRUE(printed.starts_with("megafold: tuning: ")) << printed;
  EXPECT_NE(printed.find("torn.json: is not JSON"), std::string::npos) << printed;
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 1) << printed;
  EXPECT_TRUE(attention_.UsesReference());
  ops::SetTunedChoices(kCpu, {});
  LoadTablesOnce(kCpu);
  EXPECT_FALSE(attention_.UsesReference());
}

}  // namespace
}  // namespace megafold::tuning
