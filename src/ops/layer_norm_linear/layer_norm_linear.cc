#include "megafold/ops/layer_norm_linear.h"

#include "ops/checks.h"
#include "ops/dispatch.h"

namespace megafold::ops {
namespace {

constexpr const char* kOp = "layer_norm_linear";
using Impl = LayerNormLinearImplementation;

void CheckEps(const Checks& checks, float eps) {
  checks.That(eps > 0, "eps is ", eps, ", expected a positive number");
}

// What forward and backward read alike. Returns the checks bound to x's device and type.
template <typename Args>
Checks CheckInputs(const Args& args) {
  Checks checks(kOp, "x", args.x, 2);
  const std::int64_t rows = args.x.size(0);
  const std::int64_t features = args.x.size(1);
  checks.That(features > 0, "x has shape ", args.x, ", expected at least one feature");
  checks.That(args.weight.rank == 2, "weight has shape ", args.weight, ", expected [C, ", features,
              "]");
  checks.Operand("x", args.x, {rows, features});
  checks.Operand("weight", args.weight, {args.weight.size(0), features});
  checks.OptionalParameter("gamma", args.gamma, {features});
  checks.OptionalParameter("beta", args.beta, {features});
  checks.Statistic("mean", args.mean, {rows});
  checks.Statistic("rstd", args.rstd, {rows});
  return checks;
}

void Check(const LayerNormLinearForwardArgs& args) {
  const Checks checks = CheckInputs(args);
  CheckEps(checks, args.eps);
  const std::int64_t outputs = args.weight.size(0);
  checks.OptionalParameter("linear_bias", args.linear_bias, {outputs});
  checks.Operand("y", args.y, {args.x.size(0), outputs});
}

void Check(const LayerNormLinearBackwardArgs& args) {
  const Checks checks = CheckInputs(args);
  const std::int64_t outputs = args.weight.size(0);
  checks.Operand("dy", args.dy, {args.x.size(0), outputs});
  checks.OptionalGradient("dx", args.dx, "x", args.x);
  checks.OptionalGradient("dgamma", args.dgamma, "gamma", args.gamma);
  checks.OptionalGradient("dbeta", args.dbeta, "beta", args.beta);
  checks.OptionalGradient("dweight", args.dweight, "weight", args.weight);
  checks.OptionalParameter("dlinear_bias", args.dlinear_bias, {outputs});
}

// The number of rows varies with every entry and is rounded; the widths are a model's.
template <typename Args>
ProblemClass Describe(Direction direction, const Args& args) {
  return ProblemClass(kOp, direction, args.x.dtype)
      .Size("rows", args.x.size(0))
      .Exact("in", args.x.size(1))
      .Exact("out", args.weight.size(0));
}

ProblemClass ForwardProblem(const LayerNormLinearForwardArgs& args) {
  return Describe(Direction::kForward, args);
}

ProblemClass BackwardProblem(const LayerNormLinearBackwardArgs& args) {
  return Describe(Direction::kBackward, args);
}

constexpr Route<Impl, LayerNormLinearForwardArgs> kForward{kOp, &Impl::forward, ForwardProblem};
constexpr Route<Impl, LayerNormLinearBackwardArgs> kBackward{kOp, &Impl::backward, BackwardProblem};

}  // namespace

std::size_t LayerNormLinearForwardWorkspace(const LayerNormLinearForwardArgs& args) {
  Check(args);
  return Select(kForward, args, args.x.device).workspace(args);
}

std::size_t LayerNormLinearBackwardWorkspace(const LayerNormLinearBackwardArgs& args) {
  Check(args);
  return Select(kBackward, args, args.x.device).workspace(args);
}

void LayerNormLinearForward(const LayerNormLinearForwardArgs& args, Workspace workspace,
                            Stream stream) {
  Check(args);
  Launch(kOp, Select(kForward, args, args.x.device), args, workspace, stream);
}

void LayerNormLinearBackward(const LayerNormLinearBackwardArgs& args, Workspace workspace,
                             Stream stream) {
  Check(args);
  Launch(kOp, Select(kBackward, args, args.x.device), args, workspace, stream);
}

TuningCandidates Candidates(const LayerNormLinearForwardArgs& args) {
  Check(args);
  return FindCandidates(kForward, args, args.x.device);
}

TuningCandidates Candidates(const LayerNormLinearBackwardArgs& args) {
  Check(args);
  return FindCandidates(kBackward, args, args.x.device);
}

}  // namespace megafold::ops
