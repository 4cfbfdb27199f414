#include "train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <ostream>

#include "megafold/core/error.h"

namespace megafold::train {
namespace {

constexpr std::size_t kLossWindow = 20;
constexpr std::size_t kBarWidth = 30;
constexpr auto kRedraw = std::chrono::milliseconds(50);

std::size_t TerminalWidth() {
  struct winsize size = {};
  constexpr std::size_t kUsual = 80;
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kUsual;
  return size.ws_col;
}

}  // namespace

std::string Duration(double seconds) {
  const auto whole = static_cast<long long>(std::llround(std::max(0.0, seconds)));
  std::array<char, 32> text{};
  if (whole >= 3600) {
    std::snprintf(text.data(), text.size(), "%lldh%02lldm", whole / 3600, whole / 60 % 60);
  } else if (whole >= 60) {
    std::snprintf(text.data(), text.size(), "%lldm%02llds", whole / 60, whole % 60);
  } else {
    std::snprintf(text.data(), text.size(), "%llds", whole);
  }
  return text.data();
}

Progress::Progress(std::ostream& out, const Options& options) : out_(out), options_(options) {}

void Progress::Step(std::int64_t step, double loss, double seconds, double wait_seconds) {
  losses_.push_back(loss);
  if (losses_.size() > kLossWindow) losses_.pop_front();
  seconds_ += seconds;
  wait_seconds_ += wait_seconds;
  const bool last = step == options_.total;
  if (!options_.terminal) {
    if (step % options_.report_every == 0 || last || step == options_.first + 1) {
      out_ << Text(step) << std::endl;
    }
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (open_ && !last && now - drawn_ < kRedraw) return;
  const std::string text = Text(step);
  out_ << '\r' << Bar(step, text.size()) << text << "\x1b[K" << std::flush;
  drawn_ = now;
  open_ = true;
}

void Progress::Close() {
  if (open_) out_ << std::endl;
  open_ = false;
}

std::string Progress::Text(std::int64_t step) const {
  const double loss =
      std::accumulate(losses_.begin(), losses_.end(), 0.0) / static_cast<double>(losses_.size());
  const double per_step = seconds_ / static_cast<double>(step - options_.first);
  const double wait = seconds_ > 0 ? 100 * wait_seconds_ / seconds_ : 0;
  std::array<char, 160> text{};
  std::snprintf(
      text.data(), text.size(), "step %lld/%lld  loss %.4g  %.3g s/step  data wait %.0f%%",
      static_cast<long long>(step), static_cast<long long>(options_.total), loss, per_step, wait);
  const double left = per_step * static_cast<double>(options_.total - step);
  return StrCat(text.data(), "  ", Duration(left), " left");
}

std::string Progress::Bar(std::int64_t step, std::size_t text_width) const {
  const std::size_t terminal = TerminalWidth();
  constexpr std::size_t kFrame = 4;  // brackets, a space, and the last column, which would wrap
  if (terminal < text_width + kFrame + 5) return "";
  const std::size_t width = std::min(kBarWidth, terminal - text_width - kFrame);
  const auto full = static_cast<std::size_t>(
      static_cast<double>(width) * static_cast<double>(step) / static_cast<double>(options_.total));
  return StrCat("[", std::string(full, '#'), std::string(width - full, '.'), "] ");
}

}  // namespace megafold::train
