// Measuring the candidates for one problem and choosing among them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "megafold/core/device.h"
#include "megafold/ops/tuning.h"
#include "tuning/table.h"

namespace megafold::tuning {

// One problem to measure.
struct SearchCase {
  std::string measured;              // shapes, for people
  ops::TuningCandidates candidates;  // of the call that `run` makes
  std::function<void()> prepare;     // once the choice is set: asks for the workspace
  std::function<void(int)> run;      // the call; the number chooses among copies of the operands
  // After prepare and run(0), for each candidate: why its results cannot be right, or nothing. The default comes first,
  // so that the others can be compared with it.
  std::function<std::string()> check;
};

// Milliseconds of `run`, one call at a time, after a warm-up.
using Timer = std::function<double(const std::function<void(int)>& run)>;

// A timer that spends about `seconds` on each call of it: the median of at least 5 samples, each of as many runs as last
// two milliseconds, told by `elapsed`: the milliseconds of what its argument does.
Timer MedianTimer(std::function<double(const std::function<void()>&)> elapsed, double seconds);

// A candidate must be this much faster than the default to replace it: less is noise.
inline constexpr double kWorthChanging = 0.97;

// Times every candidate with `timer`, through the operator itself with the choice set. A candidate that throws
// or whose results are wrong is recorded as failed; the choice is the default where none is faster by more than noise. Throws kDevice or kUnsupported
// with the reasons when no candidate ran. The device's choices are afterwards those from before.
TableEntry Search(Device device, const SearchCase& problem, const Timer& timer);

}  // namespace megafold::tuning
