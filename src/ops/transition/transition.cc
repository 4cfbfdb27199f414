#include "megafold/ops/transition.h"

#include "ops/checks.h"
#include "ops/dispatch.h"

namespace megafold::ops {
namespace {

constexpr const char* kOp = "transition";
using Impl = TransitionImplementation;

// What forward and backward read alike. Returns the checks bound to x's device and type.
template <typename Args>
Checks CheckInputs(const Args& args) {
  Checks checks(kOp, "x", args.x, 2);
  const std::int64_t rows = args.x.size(0);
  const std::int64_t features = args.x.size(1);
  checks.That(features > 0, "x has shape ", args.x, ", expected at least one feature");
  checks.That(args.g1.rank == 2, "g1 has shape ", args.g1, ", expected [hidden, ", features, "]");
  const std::int64_t hidden = args.g1.size(0);
  checks.Operand("x", args.x, {rows, features});
  checks.Operand("g1", args.g1, {hidden, features});
  checks.Operand("g2", args.g2, {hidden, features});
  checks.Operand("w2", args.w2, {features, hidden});
  checks.OptionalParameter("gamma", args.gamma, {features});
  checks.OptionalParameter("beta", args.beta, {features});
  checks.Statistic("mean", args.mean, {rows});
  checks.Statistic("rstd", args.rstd, {rows});
  return checks;
}

void Check(const TransitionForwardArgs& args) {
  const Checks checks = CheckInputs(args);
  checks.That(args.eps > 0, "eps is ", args.eps, ", expected a positive number");
  checks.Operand("y", args.y, {args.x.size(0), args.x.size(1)});
}

void Check(const TransitionBackwardArgs& args) {
  const Checks checks = CheckInputs(args);
  checks.Operand("dy", args.dy, {args.x.size(0), args.x.size(1)});
  checks.OptionalGradient("dx", args.dx, "x", args.x);
  checks.OptionalGradient("dgamma", args.dgamma, "gamma", args.gamma);
  checks.OptionalGradient("dbeta", args.dbeta, "beta", args.beta);
  checks.OptionalGradient("dg1", args.dg1, "g1", args.g1);
  checks.OptionalGradient("dg2", args.dg2, "g2", args.g2);
  checks.OptionalGradient("dw2", args.dw2, "w2", args.w2);
}

// The number of rows varies with every entry and is rounded; the widths are a model's.
template <typename Args>
ProblemClass Describe(Direction direction, const Args& args) {
  return ProblemClass(kOp, direction, args.x.dtype)
      .Size("rows", args.x.size(0))
      .Exact("width", args.x.size(1))
      .Exact("hidden", args.g1.size(0));
}

ProblemClass ForwardProblem(const TransitionForwardArgs& args) {
  return Describe(Direction::kForward, args);
}

ProblemClass BackwardProblem(const TransitionBackwardArgs& args) {
  return Describe(Direction::kBackward, args);
}

constexpr Route<Impl, TransitionForwardArgs> kForward{kOp, &Impl::forward, ForwardProblem};
constexpr Route<Impl, TransitionBackwardArgs> kBackward{kOp, &Impl::backward, BackwardProblem};

}  // namespace

std::size_t TransitionForwardWorkspace(const TransitionForwardArgs& args) {
  Check(args);
  return Select(kForward, args, args.x.device).workspace(args);
}

std::size_t TransitionBackwardWorkspace(const TransitionBackwardArgs& args) {
  Check(args);
  return Select(kBackward, args, args.x.device).workspace(args);
}

void TransitionForward(const TransitionForwardArgs& args, Workspace workspace, Stream stream) {
  Check(args);
  Launch(kOp, Select(kForward, args, args.x.device), args, workspace, stream);
}

void TransitionBackward(const TransitionBackwardArgs& args, Workspace workspace, Stream stream) {
  Check(args);
  Launch(kOp, Select(kBackward, args, args.x.device), args, workspace, stream);
}

TuningCandidates Candidates(const TransitionForwardArgs& args) {
  Check(args);
  return FindCandidates(kForward, args, args.x.device);
}

TuningCandidates Candidates(const TransitionBackwardArgs& args) {
  Check(args);
  return FindCandidates(kBackward, args, args.x.device);
}

}  // namespace megafold::ops
