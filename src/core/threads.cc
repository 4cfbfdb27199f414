#include "megafold/core/threads.h"

#include <sched.h>

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

}  // namespace

int GetNumThreads() { return Threads().load(std::memory_order_relaxed); }

void SetNumThreads(int threads) {
  Require(threads > 0, "the number of threads is ", threads, ", expected a positive number");
  Threads().store(threads, std::memory_order_relaxed);
}

}  // namespace megafold
