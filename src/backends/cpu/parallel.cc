#include "backends/cpu/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace megafold::cpu {
namespace {

// One ParallelFor: threads draw indices until none is left.
class Job {
 public:
  Job(std::int64_t count, const std::function<void(std::int64_t)>& body)
      : count_(count), body_(body) {}

  void Work() {
    for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      try {
        body_(i);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
  }
  void Rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::int64_t count_;
  const std::function<void(std::int64_t)>& body_;
  std::atomic<std::int64_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

class Pool {
 public:
  explicit Pool(int workers) {
    for (int w = 0; w < workers; ++w) threads_.emplace_back([this] { Loop(); });
  }
  ~Pool() {
    job_ = nullptr;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int workers() const { return static_cast<int>(threads_.size()); }

  void Run(Job& job) {
    job_ = &job;
    busy_.store(workers(), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    job.Work();
    for (int left; (left = busy_.load(std::memory_order_acquire)) > 0;) busy_.wait(left);
  }

 private:
  void Loop() {
    for (std::uint32_t seen = 0;;) {
      round_.wait(seen, std::memory_order_acquire);
      ++seen;
      if (job_ == nullptr) return;
      job_->Work();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  Job* job_ = nullptr;
  std::atomic<std::uint32_t> round_{0};
  std::atomic<int> busy_{0};
  std::vector<std::thread> threads_;
};

// The pool, and who may use it. After a fork the child has no workers: it leaves the parent's pool
// alone and starts anew.
struct SharedPool {
  std::mutex mutex;
  std::unique_ptr<Pool> pool;
  pid_t owner = 0;

  Pool& WithWorkers(int workers) {
    if (pool != nullptr && owner != getpid()) static_cast<void>(pool.release());
    if (pool == nullptr || pool->workers() != workers) {
      pool.reset();
      pool = std::make_unique<Pool>(workers);
      owner = getpid();
    }
    return *pool;
  }
};

// Never destroyed: at exit the workers may be asleep, or not exist at all in a forked child.
SharedPool& Shared() {
  static auto& shared = *new SharedPool;
  return shared;
}

thread_local bool inside_parallel = false;

}  // namespace

void ParallelFor(std::int64_t count, const std::function<void(std::int64_t)>& body) {
  const int threads = NumThreads();
  std::unique_lock lock(Shared().mutex, std::defer_lock);
  if (count <= 1 || threads <= 1 || inside_parallel || !lock.try_lock()) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  Job job(count, body);
  const auto work = [](void* context) {
    inside_parallel = true;
    static_cast<Job*>(context)->Work();
    inside_parallel = false;
  };
  if (const ParallelRunner runner = GetParallelRunner()) {
    runner(static_cast<int>(std::min<std::int64_t>(threads, count)), work, &job);
  } else {
    inside_parallel = true;
    Shared().WithWorkers(threads - 1).Run(job);
    inside_parallel = false;
  }
  job.Rethrow();
}

void ParallelRuns(int workers, std::int64_t count,
                  const std::function<void(int, std::int64_t, std::int64_t)>& body) {
  std::atomic<std::int64_t> next{0};
  // Half of what is left, shared evenly: long runs at first, single items at the end.
  const auto end_of_run = [&](std::int64_t begin) {
    return begin + std::max<std::int64_t>(1, (count - begin) / (2 * workers));
  };
  ParallelFor(std::min<std::int64_t>(workers, count), [&](std::int64_t worker) {
    for (std::int64_t begin = next.load(); begin < count;) {
      const std::int64_t end = end_of_run(begin);
      if (!next.compare_exchange_weak(begin, end)) continue;
      body(static_cast<int>(worker), begin, end);
      begin = next.load();
    }
  });
}

}  // namespace megafold::cpu
