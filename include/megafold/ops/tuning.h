// Tuned choices: which implementation runs a class of problems on one device, by measurement.
//
// Every operator takes the first implementation of its ordered list that accepts the problem. A tuned choice overrides
// that. `megafold tune` measures and writes a table; the layers above read tables and hand them to SetTunedChoices.
// Nothing below them reads a file or takes a time.
//
// A class is named by a text that starts with the operator and the direction, such as
//   "evo_attention forward bfloat16 batch=1 rows=384 queries=384 keys=384 heads=4 dim=32 bias=float32 biases=1 mask=yes".
// Sizes that a model meets in many values (batch, rows, lengths) are rounded up to the next of 1, 2, 3, 4, 6, 8, 12, 16,
// 24, ... (2^n and 3 2^n); heads, widths and types are exact.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "megafold/core/device.h"

namespace megafold::ops {

struct TunedChoice {
  std::string problem;         // the class
  std::string implementation;  // such as "cuda sm80"
  friend bool operator==(const TunedChoice&, const TunedChoice&) = default;
};

// One line for each choice whose operator or implementation this build does not have for the device: it names both.
std::vector<std::string> RefusedChoices(DeviceType device, std::span<const TunedChoice> choices);

// Replaces the choices for `device` by those that are not refused; an empty list leaves every problem to the ordered
// lists again. Returns RefusedChoices. Thread-safe; calls that run already finish with the choices they began with. A
// workspace belongs to the choices it was asked for under: change none between the query and the call.
std::vector<std::string> SetTunedChoices(Device device, std::span<const TunedChoice> choices);

// Those that hold for `device`, sorted by problem.
std::vector<TunedChoice> TunedChoices(Device device);

// What a measurement needs to know of one call. Each operator's header declares Candidates(args) for its two directions.
struct TuningCandidates {
  std::string problem;                       // the class
  std::vector<std::string> implementations;  // all that accept the problem; the one taken without tuned choices first
};

struct DeviceDescription {
  std::string name;    // the model, what tables are tied to: "NVIDIA H200, sm_90"; empty without a backend for it
  std::string driver;  // "580.159.04, CUDA 13.0"; empty for the CPU
};

// Throws kDevice when the device cannot be asked.
DeviceDescription DescribeDevice(Device device);

}  // namespace megafold::ops
