// EvoAttention on one shape, for the harness of problem.h.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/ops/cases.h"
#include "tests/ops/problem.h"

namespace megafold::test {

// Operands are called as in the arguments' struct; the output "y" is O and its cotangent "dy" is
// dO.
class EvoAttention : public Problem {
 public:
  enum class Mask { kNone, kBool, kAdditive, kSharedBool, kSharedAdditiveWide };
  enum class Bias { kNone, kPerBatch, kShared };

  std::int64_t batch = 1, rows = 1, queries = 1, keys = 1, heads = 1, dim = 8;
  Mask mask = Mask::kNone;
  Bias bias = Bias::kNone;
  bool ending_node = false;      // rows and positions lie the other way round in memory
  bool wide_bias = false;        // float32 beside half-precision operands
  bool bias_heads_last = false;  // [B, Nq, Nk, H] in memory, as a linear layer leaves it
  bool differentiable_bias = true;

  EvoAttention() = default;
  explicit EvoAttention(const Case& c);

  std::vector<Input> Inputs() const override;
  std::vector<Output> Outputs() const override;
  void Forward(const Operands& operands) const override;
  void Backward(const Operands& operands) const override;

 private:
  Shape Stored(std::int64_t positions) const;
  TensorView View(const Operands& operands, const char* name) const;
  TensorView BiasView(const Operands& operands) const;
};

}  // namespace megafold::test
