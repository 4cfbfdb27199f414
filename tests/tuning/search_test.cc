#include "tuning/search.h"

#include <gtest/gtest.h>

#include "megafold/core/error.h"
#include "tests/tuning/attention.h"

namespace megafold::tuning {
namespace {

constexpr Device kCpu{DeviceType::kCpu, 0};

class SearchTest : public ::testing::Test {
 protected:
  void TearDown() override { ops::SetTunedChoices(kCpu, {}); }

  SearchCase Case() {
    return {.measured = "small",
            .candidates = attention_.candidates(),
            .prepare = [this] { ++prepared_; },
            .run = [this](int) { attention_.Run(); },
            .check = [] { return std::string(); }};
  }
  // A clock that finds the reference to take `reference` and the vectorised kernel 1.
  Timer Clock(double reference) {
    return [this, reference](const std::function<void(int)>& run) {
      run(0);
      return attention_.UsesReference() ? reference : 1.0;
    };
  }

  test::Attention attention_;
  int prepared_ = 0;
};

TEST_F(SearchTest, EveryCandidateIsTimedUnderItsOwnChoiceAndTheFastestIsChosen) {
  const TableEntry entry = Search(kCpu, Case(), Clock(0.5));
  EXPECT_EQ(entry.problem, attention_.problem());
  EXPECT_EQ(entry.standard, "cpu simd");
  EXPECT_EQ(entry.implementation, "cpu ref");
  EXPECT_EQ(entry.times_ms, (std::map<std::string, double>{{"cpu ref", 0.5}, {"cpu simd", 1.0}}));
  EXPECT_TRUE(entry.failed.empty());
  EXPECT_EQ(entry.measured, "small");
  EXPECT_EQ(prepared_, 2);
}

TEST_F(SearchTest, ADifferenceWithinTheNoiseKeepsTheDefault) {
  EXPECT_EQ(Search(kCpu, Case(), Clock(0.98)).implementation, "cpu simd");
  EXPECT_EQ(Search(kCpu, Case(), Clock(0.96)).implementation, "cpu ref");
  EXPECT_EQ(Search(kCpu, Case(), Clock(7)).implementation, "cpu simd");
}

TEST_F(SearchTest, TheChoicesFromBeforeComeBack) {
  const std::vector<ops::TunedChoice> before{{attention_.problem(), "cpu ref"}};
  ops::SetTunedChoices(kCpu, before);
  Search(kCpu, Case(), Clock(7));
  EXPECT_EQ(ops::TunedChoices(kCpu), before);
  ops::SetTunedChoices(kCpu, {});
  SearchCase broken = Case();
  broken.run = [](int) { Fail(ErrorCode::kDevice, "no power"); };
  EXPECT_THROW(Search(kCpu, broken, Clock(1)), Error);
  EXPECT_TRUE(ops::TunedChoices(kCpu).empty());
}

TEST_F(SearchTest, ACandidateThatFailsIsRecordedAndNeverChosen) {
  const Timer clock = [this](const std::function<void(int)>&) {
    if (!attention_.UsesReference()) Fail(ErrorCode::kDevice, "out of registers\nat 3");
    return 5.0;
  };
  const TableEntry entry = Search(kCpu, Case(), clock);
  EXPECT_EQ(entry.implementation, "cpu ref");
  EXPECT_EQ(entry.failed, (std::map<std::string, std::string>{{"cpu simd", "out of registers"}}));
  const Timer stopped = [](const std::function<void(int)>&) { return 0.0; };
  try {
    Search(kCpu, Case(), stopped);
    ADD_FAILURE() << "a clock that stands still was believed";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("it took 0 ms"), std::string::npos) << error.what();
  }
}

TEST_F(SearchTest, ACandidateWithWrongResultsIsNotTimed) {
  SearchCase problem = Case();
  problem.check = [this] {
    return attention_.UsesReference() ? std::string("dq is off") : std::string();
  };
  const TableEntry entry = Search(kCpu, problem, Clock(0.5));
  EXPECT_EQ(entry.implementation, "cpu simd");
  EXPECT_EQ(entry.times_ms.count("cpu ref"), 0U);
  EXPECT_EQ(entry.failed, (std::map<std::string, std::string>{{"cpu ref", "dq is off"}}));
}

TEST_F(SearchTest, AProblemThatNobodyTakesIsAnError) {
  SearchCase none = Case();
  none.candidates.implementations.clear();
  EXPECT_THROW(Search(kCpu, none, Clock(1)), Error);
}

// A clock of its own, on which a run takes what the test says.
TEST(MedianTimer, IsTheMedianOfManyRunsWithinItsTime) {
  double now = 0;
  const auto elapsed = [&now](const std::function<void()>& body) {
    const double start = now;
    body();
    return now - start;
  };
  int calls = 0, last = -1;
  const auto run = [&](int repetition) {
    EXPECT_EQ(repetition, last + 1) << "operands are used in turn";
    last = repetition;
    ++calls;
    now += calls == 1 ? 500.0 : calls % 10 == 0 ? 40.0 : 4.0;  // a slow start, and disturbances
  };
  EXPECT_DOUBLE_EQ(MedianTimer(elapsed, 0.1)(run), 4.0);
  EXPECT_GE(calls, 25);
  EXPECT_LE(calls, 40);
  calls = 0;
  last = -1;
  EXPECT_DOUBLE_EQ(MedianTimer(elapsed, 1e-4)(run), 4.0);
  EXPECT_EQ(calls, 7) << "five samples at least";
}

TEST(MedianTimer, ShortRunsAreMeasuredTogether) {
  double now = 0;
  int samples = 0, calls = 0;
  const auto elapsed = [&](const std::function<void()>& body) {
    const double start = now;
    ++samples;
    body();
    return now - start;
  };
  const auto run = [&](int) {
    ++calls;
    now += 0.02;
  };
  EXPECT_NEAR(MedianTimer(elapsed, 0.05)(run), 0.02, 1e-9);
  EXPECT_NEAR(calls / samples, 100, 10);
}

}  // namespace
}  // namespace megafold::tuning
