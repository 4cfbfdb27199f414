#include "data/loader.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>

#include "data/random.h"
#include "megafold/core/error.h"

namespace megafold::data {

// Step k has positions k * batch .. k * batch + batch - 1 of an endless sequence of shuffled
// passes. Workers take steps in order and put batches into a map; Next takes them out in order.
struct Loader::Impl {
  Impl(const Dataset& source, int batch, std::uint64_t run_seed, std::uint64_t first)
      : dataset(source),
        batch_size(static_cast<std::uint64_t>(batch)),
        seed(run_seed),
        next_taken(first),
        next_given(first) {
    for (int i = 0; i < dataset.config().loader_threads; ++i) {
      workers.emplace_back([this] { Work(); });
    }
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    changed.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  struct Result {
    Batch batch;
    std::exception_ptr error;
  };

  void Work() {
    for (;;) {
      std::uint64_t step = 0;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] {
          const auto ahead = static_cast<std::uint64_t>(dataset.config().prefetch);
          return stopping || next_taken < next_given + ahead;
        });
        if (stopping) return;
        step = next_taken++;
      }
      Result result;
      try {
        result.batch = Prepare(step);
      } catch (...) {
        result.error = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex);
        ready.emplace(step, std::move(result));
      }
      changed.notify_all();
    }
  }

  Batch Prepare(std::uint64_t step) {
    std::vector<Example> examples;
    for (std::uint64_t slot = 0; slot < batch_size; ++slot) {
      examples.push_back(LoadAt(step * batch_size + slot));
    }
    return Collate(examples);
  }

  // The entry that the position's pass has there, else the entries in an order drawn for the
  // position until one can be read.
  Example LoadAt(std::uint64_t position) {
    const std::uint64_t example_seed = Mix(seed, position);
    const std::size_t count = dataset.size();
    const auto pass = Order(seed, RandomUse::kPassOrder, position / count);
    if (auto example = TryLoad(pass[position % count], example_seed)) return std::move(*example);
    for (const std::size_t index : Order(seed, RandomUse::kReplacement, position)) {
      if (auto example = TryLoad(index, example_seed)) return std::move(*example);
    }
    const std::lock_guard lock(mutex);
    Fail(ErrorCode::kDataCorrupt, "none of the ", count, " entries of ", dataset.config().root,
         " can be read; the first error: ", skipped.begin()->second.reason);
  }

  std::vector<std::size_t> Order(std::uint64_t order_seed, RandomUse use,
                                 std::uint64_t index) const {
    std::vector<std::size_t> order(dataset.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    Random(order_seed, use, index).Shuffle(order);
    return order;
  }

  // Nothing when the entry cannot be read; it is then not tried again.
  std::optional<Example> TryLoad(std::size_t index, std::uint64_t example_seed) {
    {
      const std::lock_guard lock(mutex);
      const auto known = skipped.find(index);
      if (known != skipped.end()) {
        ++known->second.times;
        return std::nullopt;
      }
    }
    try {
      return dataset.Load(index, example_seed);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kInternal) throw;
      const std::lock_guard lock(mutex);
      const auto at =
          skipped.emplace(index, SkippedEntry{dataset.id(index), error.what(), 0}).first;
      ++at->second.times;
      return std::nullopt;
    }
  }

  const Dataset& dataset;
  const std::uint64_t batch_size;
  const std::uint64_t seed;

  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  std::uint64_t next_taken;  // the step a worker takes next
  std::uint64_t next_given;  // the step Next returns next
  std::map<std::uint64_t, Result> ready;
  std::map<std::size_t, SkippedEntry> skipped;
  double wait_seconds = 0;
  std::vector<std::thread> workers;
};

Loader::Loader(const Dataset& dataset, int batch_size, std::uint64_t seed,
               std::uint64_t first_step) {
  Require(batch_size >= 1, "Loader: batch size is ", batch_size, ", expected at least 1");
  impl_ = std::make_unique<Impl>(dataset, batch_size, seed, first_step);
}

Loader::~Loader() = default;

Batch Loader::Next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return impl_->ready.contains(impl_->next_given); });
  Impl::Result result = std::move(impl_->ready.extract(impl_->next_given).mapped());
  ++impl_->next_given;
  impl_->wait_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  lock.unlock();
  impl_->changed.notify_all();
  if (result.error) std::rethrow_exception(result.error);
  return std::move(result.batch);
}

std::uint64_t Loader::next_step() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->next_given;
}

double Loader::wait_seconds() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->wait_seconds;
}

std::vector<SkippedEntry> Loader::skipped() const {
  const std::lock_guard lock(impl_->mutex);
  std::vector<SkippedEntry> list;
  for (const auto& [index, entry] : impl_->skipped) list.push_back(entry);
  return list;
}

}  // namespace megafold::data
