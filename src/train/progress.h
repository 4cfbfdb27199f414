// What the user sees while a run goes on: a bar on a terminal, a line now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <iosfwd>
#include <string>

namespace megafold::train {

// "2h05m", "3m20s", "12s".
std::string Duration(double seconds);

class Progress {
 public:
  struct Options {
    bool terminal = false;
    std::int64_t total = 0;         // steps of the whole run
    std::int64_t first = 0;         // steps made before this process
    std::int64_t report_every = 1;  // steps between two lines; a terminal shows every step
  };
  Progress(std::ostream& out, const Options& options);

  void Step(std::int64_t step, double loss, double seconds, double wait_seconds);
  // Ends the bar's line, so that other output may follow.
  void Close();

 private:
  std::string Text(std::int64_t step) const;
  std::string Bar(std::int64_t step, std::size_t text_width) const;

  std::ostream& out_;
  Options options_;
  std::deque<double> losses_;  // of the latest steps: the loss shown is their mean
  double seconds_ = 0;
  double wait_seconds_ = 0;
  bool open_ = false;
  std::chrono::steady_clock::time_point drawn_;
};

}  // namespace megafold::train
