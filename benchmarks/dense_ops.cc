// LayerNormLinear, Transition and TriangleMultiplication on the CPU: time of forward and backward
// and the memory they need, over the "benchmark" shapes of tests/cases. Results and workspaces are
// allocated anew in every call, as a framework without a caching allocator would, so that page
// faults count. Figures are the least of the repetitions.
//
//   build/cpu/bin/dense_ops_benchmark [float32|bfloat16] [repetitions]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "megafold/core/error.h"
#include "megafold/ops/layer_norm_linear.h"
#include "megafold/ops/transition.h"
#include "megafold/ops/triangle_multiplication.h"

namespace megafold {
namespace {

using Sizes = std::initializer_list<std::int64_t>;
using Shape = std::map<std::string, std::int64_t>;

std::size_t live_bytes = 0;
std::size_t peak_bytes = 0;

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

Problem LayerNormLinear(Tensors& t, const Shape& shape, DType dtype) {
  const std::int64_t m = shape.at("M"), k = shape.at("K"), c = shape.at("C");
  const TensorView x = t.Operand({m, k}), gamma = t.Operand({k}), beta = t.Operand({k}),
                   weight = t.Operand({c, k}, 0.1F), bias = t.Operand({c}), dy = t.Operand({m, c});
  return [=](const auto& between) {
    Tensors r(dtype);
    const ops::LayerNormLinearForwardArgs forward{
        x, gamma, beta, weight, bias, 1e-5F, r.Result({m, c}), r.Statistic({m}), r.Statistic({m})};
    Call(forward, ops::LayerNormLinearForwardWorkspace, ops::LayerNormLinearForward);
    between();
    const ops::LayerNormLinearBackwardArgs backward{x,
                                                    gamma,
                                                    beta,
                                                    weight,
                                                    forward.mean,
                                                    forward.rstd,
                                                    dy,
                                                    r.Result({m, k}),
                                                    r.Result({k}),
                                                    r.Result({k}),
                                                    r.Result({c, k}),
                                                    r.Result({c})};
    Call(backward, ops::LayerNormLinearBackwardWorkspace, ops::LayerNormLinearBackward);
  };
}

Problem Transition(Tensors& t, const Shape& shape, DType dtype) {
  const std::int64_t m = shape.at("M"), k = shape.at("K"), h = shape.at("E") * k;
  const TensorView x = t.Operand({m, k}), gamma = t.Operand({k}), beta = t.Operand({k}),
                   g1 = t.Operand({h, k}, 0.1F), g2 = t.Operand({h, k}, 0.1F),
                   w2 = t.Operand({k, h}, 0.1F), dy = t.Operand({m, k});
  return [=](const auto& between) {
    Tensors r(dtype);
    const ops::TransitionForwardArgs forward{
        x, gamma, beta, g1, g2, w2, 1e-5F, r.Result({m, k}), r.Statistic({m}), r.Statistic({m})};
    Call(forward, ops::TransitionForwardWorkspace, ops::TransitionForward);
    between();
    const ops::TransitionBackwardArgs backward{x,
                                               gamma,
                                               beta,
                                               g1,
                                               g2,
                                               w2,
                                               forward.mean,
                                               forward.rstd,
                                               dy,
                                               r.Result({m, k}),
                                               r.Result({k}),
                                               r.Result({k}),
                                               r.Result({h, k}),
                                               r.Result({h, k}),
                                               r.Result({k, h})};
    Call(backward, ops::TransitionBackwardWorkspace, ops::TransitionBackward);
  };
}

Problem TriangleMultiplication(Tensors& t, const Shape& shape, DType dtype) {
  const std::int64_t b = shape.at("B"), n = shape.at("N"), c = shape.at("C"),
                     h = shape.at("hidden");
  const auto params = [b, n, c, h](auto make) {
    return ops::TriangleMultiplicationParams{make({c}),    make({c}),    make({h, c}), make({h, c}),
                                             make({h, c}), make({h, c}), make({h}),    make({h}),
                                             make({c, h}), make({c, c})};
  };
  const ops::TriangleMultiplicationParams values =
      params([&](Sizes sizes) { return t.Operand(sizes, 0.1F); });
  const TensorView x = t.Operand({b, n, n, c}), dy = t.Operand({b, n, n, c}),
                   mask = t.Operand({b, n, n});
  return [=](const auto& between) {
    Tensors r(dtype);
    const ops::TriangleMultiplicationForwardArgs forward{ops::TriangleDirection::kOutgoing,
                                                         x,
                                                         mask,
                                                         values,
                                                         1e-5F,
                                                         r.Result({b, n, n, c}),
                                                         r.Result({b, n, n, h})};
    Call(forward, ops::TriangleMultiplicationForwardWorkspace, ops::TriangleMultiplicationForward);
    between();
    const ops::TriangleMultiplicationBackwardArgs backward{
        ops::TriangleDirection::kOutgoing,
        x,
        mask,
        values,
        1e-5F,
        forward.triangle,
        dy,
        r.Result({b, n, n, c}),
        params([&](Sizes sizes) { return r.Result(sizes); })};
    Call(backward, ops::TriangleMultiplicationBackwardWorkspace,
         ops::TriangleMultiplicationBackward);
  };
}

double Milliseconds() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Measure(const char* op, const std::string& shape, const Problem& problem, int repetitions) {
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
  std::printf("%-24s %-38s %9.2f %9.2f %9.2f %9.1f\n", op, shape.c_str(), forward, backward, both,
              static_cast<double>(peak_bytes - operands) / (1 << 20));
}

int Main(int count, char** arguments) {
  const std::string type = count > 1 ? arguments[1] : "float32";
  Require(type == "float32" || type == "bfloat16", "the type is '", type,
          "', expected float32 or bfloat16");
  const DType dtype = type == "float32" ? DType::kFloat32 : DType::kBFloat16;
  const int repetitions = count > 2 ? std::atoi(arguments[2]) : 7;
  const std::vector<std::pair<const char*, Problem (*)(Tensors&, const Shape&, DType)>> ops{
      {"layer_norm_linear", LayerNormLinear},
      {"transition", Transition},
      {"triangle_multiplication", TriangleMultiplication}};
  std::printf("%-24s %-38s %9s %9s %9s %9s\n", "operator", type.c_str(), "fwd ms", "bwd ms",
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

}  // namespace
}  // namespace megafold

int main(int count, char** arguments) {
  try {
    return megafold::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
