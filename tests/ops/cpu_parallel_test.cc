// The CPU kernels' threads: every index once, failures come back, a runner from outside does the
// work.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "backends/cpu/parallel.h"

namespace megafold::cpu {
namespace {

std::atomic<int> runs{0};

// Threads made for each call.
void RunInNewThreads(int workers, void (*work)(void*), void* context) {
  ++runs;
  std::vector<std::thread> threads;
  for (int i = 1; i < workers; ++i) threads.emplace_back(work, context);
  work(context);
  for (std::thread& thread : threads) thread.join();
}

// A runner that has one thread alone.
void RunHere(int, void (*work)(void*), void* context) {
  ++runs;
  work(context);
}

class ParallelTest : public ::testing::TestWithParam<ParallelRunner> {
 protected:
  void SetUp() override {
    SetNumThreads(4);
    SetParallelRunner(GetParam());
    runs = 0;
  }
  void TearDown() override {
    SetParallelRunner(nullptr);
    SetNumThreads(threads_);
  }

 private:
  const int threads_ = GetNumThreads();
};

TEST_P(ParallelTest, EveryIndexOnce) {
  for (const int count : {1, 2, 3, 4, 100}) {
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
    ParallelFor(count, [&](std::int64_t i) { ++seen[static_cast<std::size_t>(i)]; });
    for (const auto& times : seen) EXPECT_EQ(times, 1);
  }
  EXPECT_EQ(runs > 0, GetParam() != nullptr);
}

TEST_P(ParallelTest, RunsOfItemsAreAllItemsOnce) {
  for (const int workers : {1, 3, 4}) {
    for (const int count : {0, 1, 3, 16, 101}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      std::vector<std::atomic<int>> busy(static_cast<std::size_t>(workers));
      ParallelRuns(workers, count, [&](int worker, std::int64_t begin, std::int64_t end) {
        EXPECT_EQ(busy.at(static_cast<std::size_t>(worker))++, 0);
        EXPECT_LT(begin, end);
        for (std::int64_t i = begin; i < end; ++i) ++seen.at(static_cast<std::size_t>(i));
        --busy.at(static_cast<std::size_t>(worker));
      });
      for (const auto& times : seen) EXPECT_EQ(times, 1);
    }
  }
}

TEST_P(ParallelTest, NestedCallsRunWhereTheyAre) {
  std::atomic<int> sum{0};
  ParallelFor(8, [&](std::int64_t i) {
    const std::thread::id mine = std::this_thread::get_id();
    ParallelFor(5, [&](std::int64_t j) {
      EXPECT_EQ(std::this_thread::get_id(), mine);
      sum += static_cast<int>(i * 5 + j);
    });
  });
  EXPECT_EQ(sum, 40 * 39 / 2);
}

TEST_P(ParallelTest, TheFirstFailureComesBack) {
  const auto fail = [](std::int64_t i) {
    if (i == 3) throw std::runtime_error("three");
  };
  EXPECT_THROW(ParallelFor(10, fail), std::runtime_error);
  std::atomic<int> seen{0};
  ParallelFor(10, [&](std::int64_t) { ++seen; });
  EXPECT_EQ(seen, 10);
}

TEST_P(ParallelTest, AForkedProcessHasItsOwnThreads) {
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> seen{0};
    ParallelFor(10, [&](std::int64_t) { ++seen; });
    _exit(GetParallelRunner() == nullptr && seen == 10 && runs == 0 ? 0 : 1);
  }
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

INSTANTIATE_TEST_SUITE_P(Runners, ParallelTest,
                         ::testing::Values(static_cast<ParallelRunner>(nullptr), &RunInNewThreads,
                                           &RunHere));

}  // namespace
}  // namespace megafold::cpu
