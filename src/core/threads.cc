#include "megafold/core/threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include "megafold/core/error.h"

namespace megafold {
namespace {

int ProcessorsOfThisProcess() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

int DefaultThreads() {
  for (const char* name : {"MEGAFOLD_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(name);
    const int threads = text == nullptr ? 0 : std::atoi(text);
    if (threads > 0) return threads;
  }
  return ProcessorsOfThisProcess();
}

std::atomic<int>& Threads() {
  static std::atomic<int> threads = DefaultThreads();
  return threads;
}

std::atomic<ParallelRunner> runner{nullptr};
std::atomic<pid_t> runner_owner{0};

}  // namespace

int GetNumThreads() { return Threads().load(std::memory_order_relaxed); }

void SetNumThreads(int threads) {
  Require(threads > 0, "the number of threads is ", threads, ", expected a positive number");
  Threads().store(threads, std::memory_order_relaxed);
}

void SetParallelRunner(ParallelRunner chosen) {
  runner_owner.store(getpid(), std::memory_order_relaxed);
  runner.store(chosen, std::memory_order_release);
}

ParallelRunner GetParallelRunner() {
  const ParallelRunner chosen = runner.load(std::memory_order_acquire);
  // The runner's threads did not come along through a fork.
  if (chosen == nullptr || runner_owner.load(std::memory_order_relaxed) != getpid()) return nullptr;
  return chosen;
}

}  // namespace megafold
