#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "megafold/core/error.h"
#include "tests/train/toy.h"
#include "train/csv_log.h"
#include "train/event_file.h"
#include "train/files.h"
#include "train/progress.h"

namespace megafold::train {
namespace {

TEST(EventFile, Crc32cOfKnownTexts) {
  EXPECT_EQ(Crc32c(""), 0U);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283U);            // the usual check value
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAU);  // RFC 3720, B.4
}

// The framing, byte by byte; that TensorBoard itself reads the file is tested in Python.
TEST(EventFile, RecordsAreFramed) {
  const toy::Folder folder("events");
  EventFile events(folder.path(), 1);
  const std::pair<std::string, float> scalars[] = {{"loss/total", 1.5F}};
  events.Scalars(1, scalars);
  const std::string bytes = ReadTextFile(events.path(), 1 << 20);
  std::size_t records = 0;
  for (std::size_t at = 0; at < bytes.size(); ++records) {
    std::uint64_t length = 0;
    ASSERT_LE(at + 12, bytes.size());
    std::memcpy(&length, bytes.data() + at, sizeof length);
    ASSERT_LE(at + 16 + length, bytes.size());
    std::uint32_t masked = 0;
    std::memcpy(&masked, bytes.data() + at + 12 + length, sizeof masked);
    const std::uint32_t rotated = masked - 0xA282EAD8U;
    EXPECT_EQ((rotated << 15) | (rotated >> 17), Crc32c({bytes.data() + at + 12, length}));
    at += 16 + length;
  }
  EXPECT_EQ(records, 3U);
}

TEST(CsvLog, ContinuesAfterTheLastStepAndFlushesEachRow) {
  const toy::Folder folder("csv");
  const auto file = folder.path() / "log.csv";
  {
    CsvLog log(file, 0);
    for (int step = 1; step <= 4; ++step) log.Row({"loss"}, step, {std::to_string(step * 10)});
    EXPECT_EQ(ReadTextFile(file, 1000), "step,loss\n1,10\n2,20\n3,30\n4,40\n");
  }
  std::ofstream(file, std::ios::app) << "5,5";  // cut short
  CsvLog log(file, 2);
  EXPECT_EQ(ReadTextFile(file, 1000), "step,loss\n1,10\n2,20\n");
  log.Row({"loss"}, 3, {"31"});
  EXPECT_EQ(ReadTextFile(file, 1000), "step,loss\n1,10\n2,20\n3,31\n");
  EXPECT_THROW(log.Row({"loss", "other"}, 4, {"1", "2"}), Error);
}

TEST(Progress, LinesWhereThereIsNoTerminal) {
  std::ostringstream out;
  Progress progress(out, {.terminal = false, .total = 6, .first = 0, .report_every = 4});
  for (int step = 1; step <= 6; ++step) progress.Step(step, 2.0 * step, 0.5, 0.1);
  EXPECT_EQ(out.str(),
            "step 1/6  loss 2  0.5 s/step  data wait 20%  3s left\n"
            "step 4/6  loss 5  0.5 s/step  data wait 20%  1s left\n"
            "step 6/6  loss 7  0.5 s/step  data wait 20%  0s left\n");
}

TEST(Progress, ABarOnATerminalIsRedrawnInPlace) {
  std::ostringstream out;
  Progress progress(out, {.terminal = true, .total = 2, .first = 0, .report_every = 4});
  progress.Step(1, 1, 1, 0);
  progress.Step(2, 1, 1, 0);
  progress.Close();
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 2) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_NE(text.find("step 2/2"), std::string::npos) << text;
}

TEST(Progress, Durations) {
  EXPECT_EQ(Duration(12.4), "12s");
  EXPECT_EQ(Duration(200), "3m20s");
  EXPECT_EQ(Duration(7500), "2h05m");
}

}  // namespace
}  // namespace megafold::train
