// Ctrl-C and SIGTERM ask the run to stop after the step at hand; a second one ends the process.
#pragma once

#include <csignal>

namespace megafold::train {

// While it lives, the first SIGINT or SIGTERM is only noted. The handler then puts the default
// action back for both, so the next one stops the process at once. One at a time per process.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // The signal's number, 0 while none came.
  static int received();

 private:
  struct sigaction old_interrupt_;
  struct sigaction old_terminate_;
};

}  // namespace megafold::train
