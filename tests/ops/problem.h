// A harness for operators over named operands: the same random problem run in any type through the
// public functions, compared with the fp64 reference and with finite differences.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "megafold/core/tensor_view.h"

namespace megafold::test {

using Shape = std::vector<std::int64_t>;
using Values = std::vector<double>;
using Operands = std::map<std::string, TensorView>;

// Owned memory of one tensor, full of NaN at first. `gap` extra elements follow every row of the
// last dimension; they must survive a call unchanged.
class Tensor {
 public:
  Tensor(DType dtype, const Shape& shape, std::int64_t gap = 0);

  const TensorView& view() const { return view_; }
  void Set(const Values& values);
  Values Get() const;
  // Whether every byte between the rows still has its first value.
  bool GapsUntouched() const;

 private:
  TensorView view_;
  std::vector<unsigned char> bytes_;
};

struct Input {
  std::string name = {};
  Shape shape = {};
  bool differentiable = true;
  double scale = 1;            // standard deviation of the values
  double offset = 0;           // their mean
  bool is_mask = false;        // bool instead: values 0 and 1, some whole rows zero
  bool additive = false;       // of a mask: random terms for 1 and -inf for 0
  bool wide = false;           // float32 whatever the storage type
  bool wide_gradient = false;  // likewise its gradient, which is contiguous
};

struct Output {
  std::string name = {};
  Shape shape = {};
  bool statistic = false;  // float32 whatever the storage type, and contiguous
};

// An operator on one shape. Gradients are called "d" + input; the cotangent of the first output,
// "y", is "dy".
class Problem {
 public:
  virtual ~Problem() = default;
  virtual std::vector<Input> Inputs() const = 0;
  virtual std::vector<Output> Outputs() const = 0;
  // Allocates the workspace itself and calls the public function. Absent names are absent operands.
  virtual void Forward(const Operands& operands) const = 0;
  virtual void Backward(const Operands& operands) const = 0;
};

// The view of an operand, undefined when it is absent.
TensorView Find(const Operands& operands, const std::string& name);

// Workspace of exactly `bytes`, aligned as the contract says and full of NaN.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes);
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  void* data_;
  std::size_t bytes_;
};

struct RunOptions {
  DType dtype = DType::kFloat32;
  DType parameter_dtype = DType::kFloat32;  // of rank-1 inputs
  std::int64_t gap = 0;
  std::vector<std::string> only_gradients = {};  // empty: all
};

using Results = std::map<std::string, Values>;

// Random inputs and cotangent, representable in `dtype`.
Results MakeInputs(const Problem& problem, DType dtype, std::uint32_t seed);

// Forward and backward; outputs and gradients by name.
Results Compute(const Problem& problem, const Results& inputs, const RunOptions& options);

// ||a - b|| / ||b|| over the elements that differ and are finite in b; 0 when both are empty or
// zero.
double RelativeError(const Values& a, const Values& b);

// Expects every result of `options` within the tolerance of numerics.md of the fp64 run.
void ExpectMatchesReference(const Problem& problem, const RunOptions& options, std::uint32_t seed);

// Expects the fp64 gradients to agree with central differences of sum(y * dy).
void ExpectMatchesFiniteDifferences(const Problem& problem, std::uint32_t seed);

// Expects two runs to agree in every bit.
void ExpectRepeatable(const Problem& problem, const RunOptions& options, std::uint32_t seed);

}  // namespace megafold::test
