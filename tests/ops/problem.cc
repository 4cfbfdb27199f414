#include "tests/ops/problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "backends/cpu/ref/dense.h"

namespace megafold::test {
namespace {

constexpr unsigned char kGapByte = 0x5A;

std::int64_t Count(const Shape& shape) {
  std::int64_t count = 1;
  for (std::int64_t size : shape) count *= size;
  return count;
}

bool IsGap(const TensorView& view, std::size_t byte) {
  const auto element = static_cast<std::int64_t>(byte / SizeOf(view.dtype));
  const std::int64_t row = view.rank == 1 ? view.size(0) : view.stride(view.rank - 2);
  return element % row >= view.size(view.rank - 1);
}

double Tolerance(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return 1e-2;
    case DType::kFloat16:
      return 2e-3;
    case DType::kFloat64:
      return 1e-12;
    default:
      return 1e-5;
  }
}

Values MakeMask(const Shape& shape, std::mt19937& random) {
  Values values(static_cast<std::size_t>(Count(shape)));
  std::bernoulli_distribution keep(0.7);
  std::bernoulli_distribution keep_row(0.9);
  const auto row = static_cast<std::size_t>(std::max<std::int64_t>(shape.back(), 1));
  bool row_kept = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % row == 0) row_kept = keep_row(random);
    values[i] = row_kept && keep(random) ? 1 : 0;
  }
  return values;
}

DType Wide(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

double Dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

Tensor::Tensor(DType dtype, const Shape& shape, std::int64_t gap) {
  view_.dtype = dtype;
  view_.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int d = view_.rank - 1; d >= 0; --d) {
    const auto slot = static_cast<std::size_t>(d);
    view_.sizes[slot] = shape[slot];
    view_.strides[slot] = stride;
    stride *= shape[slot];
    if (d == view_.rank - 1 && view_.rank > 1) stride += gap;
  }
  bytes_.assign(static_cast<std::size_t>(stride) * SizeOf(dtype), kGapByte);
  view_.data = bytes_.data();
  const double poison = dtype == DType::kBool ? 0 : std::numeric_limits<double>::quiet_NaN();
  Set(Values(static_cast<std::size_t>(view_.numel()), poison));
}

void Tensor::Set(const Values& values) { cpu::ref::Write(view_, values); }
Values Tensor::Get() const { return cpu::ref::Read(view_); }

bool Tensor::GapsUntouched() const {
  for (std::size_t i = 0; i < bytes_.size(); ++i) {
    if (IsGap(view_, i) && bytes_[i] != kGapByte) return false;
  }
  return true;
}

TensorView Find(const Operands& operands, const std::string& name) {
  const auto found = operands.find(name);
  return found == operands.end() ? TensorView{} : found->second;
}

Scratch::Scratch(std::size_t bytes) : memory_(new unsigned char[bytes + 256]), bytes_(bytes) {
  std::size_t space = bytes + 256;
  void* start = memory_.get();
  data_ = std::align(256, bytes, start, space);
  std::memset(data_, 0xFF, bytes);  // NaN in every floating type
}

Results MakeInputs(const Problem& problem, DType dtype, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Input> inputs = problem.Inputs();
  inputs.push_back({.name = "dy", .shape = problem.Outputs().front().shape});
  Results values;
  for (const Input& input : inputs) {
    Values& out = values[input.name];
    std::normal_distribution<double> normal(input.offset, input.scale);
    if (input.is_mask) {
      out = MakeMask(input.shape, random);
      if (!input.additive) continue;
      const double infinity = std::numeric_limits<double>::infinity();
      for (double& value : out) value = value != 0 ? normal(random) : -infinity;
    } else {
      out.resize(static_cast<std::size_t>(Count(input.shape)));
      for (double& value : out) value = normal(random);
    }
    Tensor rounded(input.wide ? Wide(dtype) : dtype, input.shape);
    rounded.Set(out);
    out = rounded.Get();
  }
  return values;
}

Results Compute(const Problem& problem, const Results& inputs, const RunOptions& options) {
  std::map<std::string, Tensor> tensors;
  Operands operands;
  std::vector<std::string> results;
  const auto add = [&](const std::string& name, DType dtype, const Shape& shape, bool gaps = true) {
    const auto [entry, fresh] =
        tensors.try_emplace(name, dtype, shape, gaps ? options.gap : std::int64_t{0});
    operands[name] = entry->second.view();
    return &entry->second;
  };
  const auto wanted = [&](const std::string& name) {
    const auto& only = options.only_gradients;
    return only.empty() || std::ranges::find(only, name) != only.end();
  };
  const auto type_of = [&](const Input& input) {
    if (input.is_mask && !input.additive) return DType::kBool;
    if (input.wide) return Wide(options.dtype);
    return input.shape.size() == 1 ? options.parameter_dtype : options.dtype;
  };
  for (const Input& input : problem.Inputs()) {
    add(input.name, type_of(input), input.shape)->Set(inputs.at(input.name));
  }
  for (const Output& output : problem.Outputs()) {
    add(output.name, output.statistic ? Wide(options.dtype) : options.dtype, output.shape,
        !output.statistic);
    results.push_back(output.name);
  }
  problem.Forward(operands);

  add("dy", options.dtype, problem.Outputs().front().shape)->Set(inputs.at("dy"));
  for (const Input& input : problem.Inputs()) {
    if (!input.differentiable || !wanted("d" + input.name)) continue;
    const DType type = input.wide_gradient ? Wide(options.dtype) : type_of(input);
    add("d" + input.name, type, input.shape, !input.wide_gradient);
    results.push_back("d" + input.name);
  }
  problem.Backward(operands);

  Results values;
  for (const std::string& name : results) values[name] = tensors.at(name).Get();
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(tensor.GapsUntouched()) << name << " was written outside its rows";
  }
  return values;
}

double RelativeError(const Values& a, const Values& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) difference += (a[i] - b[i]) * (a[i] - b[i]);
    if (std::isfinite(b[i])) norm += b[i] * b[i];
  }
  if (difference == 0) return 0;
  return norm == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(difference / norm);
}

void ExpectMatchesReference(const Problem& problem, const RunOptions& options, std::uint32_t seed) {
  const Results inputs = MakeInputs(problem, options.dtype, seed);
  RunOptions exact = options;
  exact.dtype = exact.parameter_dtype = DType::kFloat64;
  const Results expected = Compute(problem, inputs, exact);
  const Results actual = Compute(problem, inputs, options);
  for (const auto& [name, values] : actual) {
    const Values& reference = expected.at(name);
    // Written so that a NaN fails.
    EXPECT_TRUE(RelativeError(values, reference) <= Tolerance(options.dtype))
        << name << " differs by " << RelativeError(values, reference) << " in "
        << Name(options.dtype);
    double largest = 0;
    double worst = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] == reference[i] && std::isinf(values[i])) continue;
      largest = std::max(largest, std::abs(reference[i]));
      worst = std::max(worst, std::abs(values[i] - reference[i]));
    }
    EXPECT_LE(worst, Tolerance(options.dtype) * largest + 1e-5) << name;
  }
}

void ExpectMatchesFiniteDifferences(const Problem& problem, std::uint32_t seed) {
  const RunOptions exact{.dtype = DType::kFloat64, .parameter_dtype = DType::kFloat64};
  const Results inputs = MakeInputs(problem, DType::kFloat64, seed);
  const Results gradients = Compute(problem, inputs, exact);
  const auto loss = [&](const Results& at) {
    return Dot(Compute(problem, at, exact).at("y"), at.at("dy"));
  };
  constexpr double kStep = 1e-5;
  for (const Input& input : problem.Inputs()) {
    if (!input.differentiable) continue;
    const Values& gradient = gradients.at("d" + input.name);
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      Results above = inputs;
      Results below = inputs;
      above[input.name][i] += kStep;
      below[input.name][i] -= kStep;
      const double difference = (loss(above) - loss(below)) / (2 * kStep);
      EXPECT_NEAR(gradient[i], difference, 1e-6 * std::max(1.0, std::abs(difference)))
          << "d" << input.name << "[" << i << "]";
    }
  }
}

void ExpectRepeatable(const Problem& problem, const RunOptions& options, std::uint32_t seed) {
  const Results inputs = MakeInputs(problem, options.dtype, seed);
  EXPECT_EQ(Compute(problem, inputs, options), Compute(problem, inputs, options));
}

}  // namespace megafold::test
