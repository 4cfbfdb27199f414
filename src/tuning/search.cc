#include "tuning/search.h"

#include <algorithm>
#include <cmath>

#include "megafold/core/error.h"

namespace megafold::tuning {
namespace {

// Puts the device's choices back.
class ChoicesScope {
 public:
  explicit ChoicesScope(Device device) : device_(device), before_(ops::TunedChoices(device)) {}
  ~ChoicesScope() { ops::SetTunedChoices(device_, before_); }
  ChoicesScope(const ChoicesScope&) = delete;
  ChoicesScope& operator=(const ChoicesScope&) = delete;

 private:
  Device device_;
  std::vector<ops::TunedChoice> before_;
};

double TimeOf(Device device, const SearchCase& problem, const std::string& candidate,
              const Timer& timer) {
  const std::vector<ops::TunedChoice> choice{{problem.candidates.problem, candidate}};
  for (const std::string& refused : ops::SetTunedChoices(device, choice)) {
    Fail(ErrorCode::kInternal, refused);
  }
  problem.prepare();
  problem.run(0);
  if (const std::string wrong = problem.check(); !wrong.empty()) {
    Fail(ErrorCode::kInternal, wrong);
  }
  const double time = timer(problem.run);
  if (!(time > 0) || !std::isfinite(time)) Fail(ErrorCode::kDevice, "it took ", time, " ms");
  return time;
}

std::string Choose(const TableEntry& entry) {
  const auto fastest =
      std::min_element(entry.times_ms.begin(), entry.times_ms.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto standard = entry.times_ms.find(entry.standard);
  if (standard == entry.times_ms.end()) return fastest->first;
  return fastest->second < kWorthChanging * standard->second ? fastest->first : entry.standard;
}

}  // namespace

Timer MedianTimer(std::function<double(const std::function<void()>&)> elapsed, double seconds) {
  constexpr double kSampleMs = 2;
  constexpr int kFewestSamples = 5, kMostSamples = 200, kMostRuns = 200;
  return [elapsed = std::move(elapsed), seconds](const std::function<void(int)>& run) {
    int repetition = 0;
    const auto sample = [&](int runs) {
      const double time = elapsed([&] {
        for (int i = 0; i < runs; ++i) run(repetition++);
      });
      return time / runs;
    };
    sample(1);  // the first call pays for more than its work
    const double once = std::max(sample(1), 1e-6);
    const int runs = static_cast<int>(std::clamp(kSampleMs / once, 1.0, double{kMostRuns}));
    const int samples = static_cast<int>(
        std::clamp(seconds * 1e3 / (once * runs), double{kFewestSamples}, double{kMostSamples}));
    std::vector<double> times;
    for (int i = 0; i < samples; ++i) times.push_back(sample(runs));
    std::nth_element(times.begin(), times.begin() + samples / 2, times.end());
    return times[static_cast<std::size_t>(samples) / 2];
  };
}

TableEntry Search(Device device, const SearchCase& problem, const Timer& timer) {
  const auto& candidates = problem.candidates.implementations;
  if (candidates.empty()) {
    Fail(ErrorCode::kUnsupported, problem.candidates.problem, ": nothing here can run it");
  }
  const ChoicesScope scope(device);
  TableEntry entry{.problem = problem.candidates.problem,
                   .implementation = {},
                   .standard = candidates.front(),
                   .measured = problem.measured,
                   .times_ms = {},
                   .failed = {}};
  for (const std::string& candidate : candidates) {
    try {
      entry.times_ms[candidate] = TimeOf(device, problem, candidate, timer);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      entry.failed[candidate] = text.substr(0, text.find('\n'));
    }
  }
  if (entry.times_ms.empty()) {
    Fail(ErrorCode::kDevice, entry.problem, ": every candidate failed; ", candidates.front(), ": ",
         entry.failed[candidates.front()]);
  }
  entry.implementation = Choose(entry);
  return entry;
}

}  // namespace megafold::tuning
