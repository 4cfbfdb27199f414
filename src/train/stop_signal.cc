#include "train/stop_signal.h"

#include <unistd.h>

#include <string_view>

namespace megafold::train {
namespace {

volatile std::sig_atomic_t g_received = 0;

void Note(int number) {
  constexpr std::string_view kMessage =
      "\nstopping after this step and saving a checkpoint; once more stops at once\n";
  g_received = number;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  // Only async-signal-safe calls here; a lost message is no failure.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kMessage.data(), kMessage.size());
}

}  // namespace

StopSignal::StopSignal() {
  g_received = 0;
  struct sigaction action = {};
  action.sa_handler = Note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &old_interrupt_);
  sigaction(SIGTERM, &action, &old_terminate_);
}

StopSignal::~StopSignal() {
  sigaction(SIGINT, &old_interrupt_, nullptr);
  sigaction(SIGTERM, &old_terminate_, nullptr);
}

int StopSignal::received() { return g_received; }

}  // namespace megafold::train
