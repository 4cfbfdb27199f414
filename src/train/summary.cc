// What a run says of itself at its end.
#include <array>
#include <cstdio>

#include "megafold/core/error.h"
#include "train/progress.h"
#include "train/trainer.h"

namespace megafold::train {
namespace {

std::string Gib(std::int64_t bytes) {
  std::array<char, 32> text{};
  constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
  std::snprintf(text.data(), text.size(), "%.2f GiB", static_cast<double>(bytes) / kGib);
  return text.data();
}

std::string Formatted(const char* format, double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

std::string SkippedText(const std::vector<SkippedEntry>& skipped) {
  if (skipped.empty()) return "none";
  std::string text = std::to_string(skipped.size());
  for (const SkippedEntry& entry : skipped) {
    text += StrCat("\n    ", entry.entry_id, " (", entry.times, "x): ", entry.reason);
  }
  return text;
}

}  // namespace

std::string RunSummary::Text() const {
  const std::int64_t steps = last_step - first_step;
  std::string text = StrCat("steps            ", steps);
  if (first_step > 0) text += StrCat(" (", first_step + 1, " to ", last_step, ")");
  if (steps > 0) {
    text += StrCat("\ntime             ", Duration(seconds), ", ",
                   Formatted("%.3g", seconds / static_cast<double>(steps)), " s per step, ",
                   Formatted("%.1f", 100 * wait_seconds / seconds), " % waiting for data");
    text += StrCat("\nloss             ", Formatted("%.4g", first_loss), " -> ",
                   Formatted("%.4g", last_loss), " (means of the first and last tenth)");
  }
  text += "\npeak memory      " + Gib(peak_host_bytes) + " host";
  if (peak_device_bytes > 0) text += ", " + Gib(peak_device_bytes) + " device";
  text += "\nskipped entries  " + SkippedText(skipped);
  text += "\nlogs             " + csv.string() + "; tensorboard --logdir " + folder.string();
  text += "\ncheckpoint       " + checkpoint.string() + "\n";
  return text;
}

}  // namespace megafold::train
