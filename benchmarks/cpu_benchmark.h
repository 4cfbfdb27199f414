// What the CPU benchmarks share: operands that stay, results and workspaces that are allocated anew
// in every call, as a framework without a caching allocator would, so that page faults count, and
// the memory that lives meanwhile. Times are the least of the repetitions.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "megafold/core/device.h"
#include "megafold/core/error.h"
#include "megafold/core/tensor_view.h"
#include "megafold/core/workspace.h"

namespace megafold::benchmarks {

using Sizes = std::initializer_list<std::int64_t>;
using Shape = std::map<std::string, std::int64_t>;

inline std::size_t live_bytes = 0;
inline std::size_t peak_bytes = 0;

// Memory that is counted while it lives.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    data_ = std::aligned_alloc(256, (bytes + 511) / 256 * 256);
    live_bytes += bytes_;
    peak_bytes = std::max(peak_bytes, live_bytes);
  }
  ~Memory() {
    std::free(data_);
    live_bytes -= bytes_;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  std::size_t bytes_;
};

// The tensors of one problem: operands that stay, and results that are made anew for every call.
class Tensors {
 public:
  explicit Tensors(DType dtype) : dtype_(dtype) {}

  TensorView Operand(Sizes sizes, float scale = 1) {
    const TensorView view = Result(sizes);
    std::normal_distribution<float> normal(0, scale);
    for (std::int64_t i = 0; i < view.numel(); ++i) Set(view, i, normal(random_));
    return view;
  }
  // bool, with about one in ten false.
  TensorView Mask(Sizes sizes) {
    const TensorView view = New(sizes, DType::kBool);
    for (std::int64_t i = 0; i < view.numel(); ++i)
      view.ptr<std::uint8_t>()[i] = random_() % 10 > 0;
    return view;
  }
  TensorView Result(Sizes sizes) { return New(sizes, dtype_); }
  TensorView Statistic(Sizes sizes) { return New(sizes, DType::kFloat32); }

 private:
  TensorView New(Sizes sizes, DType dtype) {
    std::size_t bytes = SizeOf(dtype);
    for (const std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
    memory_.push_back(std::make_unique<Memory>(bytes));
    return MakeView(memory_.back()->data(), dtype, sizes);
  }
  static void Set(const TensorView& view, std::int64_t i, float value) {
    if (view.dtype == DType::kFloat32) {
      view.ptr<float>()[i] = value;
      return;
    }
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    view.ptr<std::uint16_t>()[i] = static_cast<std::uint16_t>(bits >> 16);
  }

  DType dtype_;
  std::mt19937 random_{1};
  std::vector<std::unique_ptr<Memory>> memory_;
};

template <typename Args>
void Call(const Args& args, std::size_t (*workspace)(const Args&),
          void (*run)(const Args&, Workspace, Stream)) {
  const std::size_t bytes = workspace(args);
  const Memory scratch(bytes);
  run(args, {scratch.data(), bytes}, {});
}

// Forward and backward of one problem; calls between() when forward is done.
using Problem = std::function<void(const std::function<void()>& between)>;

inline double Milliseconds() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline void Measure(const char* op, const std::string& shape, const Problem& problem,
                    int repetitions) {
  double forward = 1e30, backward = 1e30, both = 1e30;
  const std::size_t operands = live_bytes;
  peak_bytes = live_bytes;
  for (int i = 0; i < repetitions; ++i) {
    double middle = 0;
    const double begin = Milliseconds();
    problem([&] { middle = Milliseconds(); });
    const double end = Milliseconds();
    forward = std::min(forward, middle - begin);
    backward = std::min(backward, end - middle);
    both = std::min(both, end - begin);
  }
  std::printf("%-24s %-72s %9.2f %9.2f %9.2f %9.1f\n", op, shape.c_str(), forward, backward, both,
              static_cast<double>(peak_bytes - operands) / (1 << 20));
}

using MakeProblem = Problem (*)(Tensors&, const Shape&, DType);

// Arguments of the program: [float32|bfloat16] [repetitions]. One line per "benchmark" shape of
// tests/cases.
inline int Main(int count, char** arguments,
                const std::vector<std::pair<const char*, MakeProblem>>& ops) {
  const std::string type = count > 1 ? arguments[1] : "float32";
  Require(type == "float32" || type == "bfloat16", "the type is '", type,
          "', expected float32 or bfloat16");
  const DType dtype = type == "float32" ? DType::kFloat32 : DType::kBFloat16;
  const int repetitions = count > 2 ? std::atoi(arguments[2]) : 7;
  std::printf("%-24s %-72s %9s %9s %9s %9s\n", "operator", type.c_str(), "fwd ms", "bwd ms",
              "both ms", "MiB");
  for (const auto& [name, make] : ops) {
    std::ifstream file(std::string(MEGAFOLD_SOURCE_DIR) + "/tests/cases/" + name + ".json");
    const nlohmann::json cases = nlohmann::json::parse(file);
    for (const nlohmann::json& shape : cases.at("benchmark")) {
      Tensors tensors(dtype);
      Measure(name, shape.dump(), make(tensors, shape.get<Shape>(), dtype), repetitions);
    }
  }
  return 0;
}

// main() of a benchmark: an error is one line.
inline int Run(int count, char** arguments,
               const std::vector<std::pair<const char*, MakeProblem>>& ops) {
  try {
    return Main(count, arguments, ops);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace megafold::benchmarks
