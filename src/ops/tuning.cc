#include "ops/tuning.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "megafold/core/error.h"
#include "megafold/ops/tuning.h"
#include "ops/backends.h"

namespace megafold::ops {
namespace {

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};
using Table = std::unordered_map<std::string, std::string, TextHash, std::equal_to<>>;

// More devices than any host has; those beyond go without choices.
constexpr int kMaxDevices = 64;
constexpr std::size_t kDeviceTypes = 3;

// The table of each device, or null. A table that was replaced stays: a call may be reading it.
class Registry {
 public:
  static Registry& Get() {
    static Registry registry;
    return registry;
  }

  const Table* Find(Device device) const {
    if (device.index < 0 || device.index >= kMaxDevices) return nullptr;
    return current_[Slot(device)].load(std::memory_order_acquire);
  }

  void Replace(Device device, Table table) {
    Require(device.index >= 0 && device.index < kMaxDevices, "device ", Name(device.type), ":",
            device.index, " can have no tuned choices, expected an index below ", kMaxDevices);
    const std::lock_guard lock(mutex_);
    const Table* next = nullptr;
    if (!table.empty()) {
      kept_.push_back(std::make_unique<const Table>(std::move(table)));
      next = kept_.back().get();
    }
    current_[Slot(device)].store(next, std::memory_order_release);
  }

 private:
  static std::size_t Slot(Device device) {
    return static_cast<std::size_t>(device.type) * kMaxDevices +
           static_cast<std::size_t>(device.index);
  }

  std::array<std::atomic<const Table*>, kDeviceTypes * kMaxDevices> current_{};
  std::mutex mutex_;
  std::vector<std::unique_ptr<const Table>> kept_;
};

// Whether an operator's lists hold an implementation of that name with that direction.
template <typename Impl>
bool Has(DeviceType device, std::string_view name, Direction direction) {
  for (const std::span<const Impl> list : Backends<Impl>()) {
    for (const Impl& impl : list) {
      if (impl.device != device || impl.name != name) continue;
      return direction == Direction::kForward ? impl.forward.supports != nullptr
                                              : impl.backward.supports != nullptr;
    }
  }
  return false;
}

struct Operator {
  std::string_view name;
  bool (*has)(DeviceType, std::string_view, Direction);
};
constexpr Operator kOperators[] = {
    {"evo_attention", Has<EvoAttentionImplementation>},
    {"layer_norm_linear", Has<LayerNormLinearImplementation>},
    {"transition", Has<TransitionImplementation>},
    {"triangle_multiplication", Has<TriangleMultiplicationImplementation>},
};

// Takes the first word off `text`.
std::string_view TakeWord(std::string_view* text) {
  const std::size_t end = std::min(text->find(' '), text->size());
  const std::string_view word = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  return word;
}

// Why a choice cannot be followed, or nothing.
std::string Refusal(DeviceType device, const TunedChoice& choice) {
  std::string_view rest = choice.problem;
  const std::string_view op = TakeWord(&rest), way = TakeWord(&rest);
  const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                   [op](const Operator& known) { return known.name == op; });
  if (found == std::end(kOperators)) return StrCat("no operator is called '", op, "'");
  if (way != Name(Direction::kForward) && way != Name(Direction::kBackward)) {
    return StrCat("'", way, "' is no direction, expected forward or backward");
  }
  const Direction direction =
      way == Name(Direction::kForward) ? Direction::kForward : Direction::kBackward;
  if (found->has(device, choice.implementation, direction)) return {};
  return StrCat("this build has no implementation '", choice.implementation, "' on ", Name(device));
}

}  // namespace

std::vector<std::string> RefusedChoices(DeviceType device, std::span<const TunedChoice> choices) {
  std::vector<std::string> refused;
  for (const TunedChoice& choice : choices) {
    const std::string why = Refusal(device, choice);
    if (!why.empty()) refused.push_back(StrCat("'", choice.problem, "': ", why));
  }
  return refused;
}

std::vector<std::string> SetTunedChoices(Device device, std::span<const TunedChoice> choices) {
  Table table;
  for (const TunedChoice& choice : choices) {
    if (Refusal(device.type, choice).empty()) {
      table.insert_or_assign(choice.problem, choice.implementation);
    }
  }
  Registry::Get().Replace(device, std::move(table));
  return RefusedChoices(device.type, choices);
}

std::vector<TunedChoice> TunedChoices(Device device) {
  std::vector<TunedChoice> choices;
  if (const Table* table = Registry::Get().Find(device)) {
    for (const auto& [problem, implementation] : *table) {
      choices.push_back({problem, implementation});
    }
  }
  std::sort(choices.begin(), choices.end(),
            [](const auto& a, const auto& b) { return a.problem < b.problem; });
  return choices;
}

bool HasTunedChoices(Device device) { return Registry::Get().Find(device) != nullptr; }

std::string_view TunedImplementation(Device device, const ProblemClass& problem) {
  const Table* table = Registry::Get().Find(device);
  if (table == nullptr) return {};
  const auto found = table->find(problem.text());
  return found == table->end() ? std::string_view() : std::string_view(found->second);
}

DeviceDescription DescribeDevice(Device device) {
  switch (device.type) {
    case DeviceType::kCpu:
      return {cpu::DeviceName(), ""};
    case DeviceType::kCuda:
      return {cuda::DeviceName(device.index), cuda::DriverName()};
    case DeviceType::kHip:
      return {hip::DeviceName(device.index), hip::DriverName()};
  }
  return {};
}

}  // namespace megafold::ops
