#include "megafold/ops/triangle_multiplication.h"

#include "ops/checks.h"
#include "ops/dispatch.h"

namespace megafold::ops {
namespace {

constexpr const char* kOp = "triangle_multiplication";
using Impl = TriangleMultiplicationImplementation;

void CheckParams(const Checks& checks, const TriangleMultiplicationParams& params,
                 std::int64_t channels, std::int64_t hidden) {
  checks.OptionalParameter("gamma_in", params.gamma_in, {channels});
  checks.OptionalParameter("beta_in", params.beta_in, {channels});
  checks.Operand("wap", params.wap, {hidden, channels});
  checks.Operand("wag", params.wag, {hidden, channels});
  checks.Operand("wbp", params.wbp, {hidden, channels});
  checks.Operand("wbg", params.wbg, {hidden, channels});
  checks.OptionalParameter("gamma_out", params.gamma_out, {hidden});
  checks.OptionalParameter("beta_out", params.beta_out, {hidden});
  checks.Operand("wop", params.wop, {channels, hidden});
  checks.Operand("wog", params.wog, {channels, channels});
}

// What forward and backward read alike. Returns the checks bound to x's device and type.
template <typename Args>
Checks CheckInputs(const Args& args) {
  const TensorView& x = args.x;
  Checks checks(kOp, "x", x, 4);
  const std::int64_t batch = x.size(0);
  const std::int64_t length = x.size(1);
  const std::int64_t channels = x.size(3);
  checks.That(x.size(2) == length, "x has shape ", x,
              ", expected [B, N, N, C] with both middle dimensions equal");
  checks.That(channels > 0, "x has shape ", x, ", expected at least one channel");
  checks.That(args.params.wap.rank == 2, "wap has shape ", args.params.wap, ", expected [hidden, ",
              channels, "]");
  const std::int64_t hidden = args.params.wap.size(0);
  checks.That(hidden > 0, "wap has shape ", args.params.wap,
              ", expected at least one hidden channel");
  checks.Operand("x", x, {batch, length, length, channels});
  checks.OptionalMask("mask", args.mask, {batch, length, length});
  CheckParams(checks, args.params, channels, hidden);
  checks.Operand("triangle", args.triangle, {batch, length, length, hidden});
  checks.That(args.eps > 0, "eps is ", args.eps, ", expected a positive number");
  return checks;
}

void Check(const TriangleMultiplicationForwardArgs& args) {
  const TensorView& x = args.x;
  CheckInputs(args).Operand("y", args.y, {x.size(0), x.size(1), x.size(2), x.size(3)});
}

void Check(const TriangleMultiplicationBackwardArgs& args) {
  const TensorView& x = args.x;
  const TriangleMultiplicationParams& params = args.params;
  const TriangleMultiplicationParams& grads = args.dparams;
  const Checks checks = CheckInputs(args);
  checks.Operand("dy", args.dy, {x.size(0), x.size(1), x.size(2), x.size(3)});
  checks.OptionalGradient("dx", args.dx, "x", x);
  checks.OptionalGradient("dgamma_in", grads.gamma_in, "gamma_in", params.gamma_in);
  checks.OptionalGradient("dbeta_in", grads.beta_in, "beta_in", params.beta_in);
  checks.OptionalGradient("dwap", grads.wap, "wap", params.wap);
  checks.OptionalGradient("dwag", grads.wag, "wag", params.wag);
  checks.OptionalGradient("dwbp", grads.wbp, "wbp", params.wbp);
  checks.OptionalGradient("dwbg", grads.wbg, "wbg", params.wbg);
  checks.OptionalGradient("dgamma_out", grads.gamma_out, "gamma_out", params.gamma_out);
  checks.OptionalGradient("dbeta_out", grads.beta_out, "beta_out", params.beta_out);
  checks.OptionalGradient("dwop", grads.wop, "wop", params.wop);
  checks.OptionalGradient("dwog", grads.wog, "wog", params.wog);
}

// Batch and length vary with every entry and are rounded; the widths are a model's.
template <typename Args>
ProblemClass Describe(Direction direction, const Args& args) {
  return ProblemClass(kOp, direction, args.x.dtype)
      .Size("batch", args.x.size(0))
      .Size("length", args.x.size(1))
      .Exact("width", args.x.size(3))
      .Exact("hidden", args.params.wap.size(0))
      .Word("edges", args.direction == TriangleDirection::kOutgoing ? "outgoing" : "incoming");
}

ProblemClass ForwardProblem(const TriangleMultiplicationForwardArgs& args) {
  return Describe(Direction::kForward, args);
}

ProblemClass BackwardProblem(const TriangleMultiplicationBackwardArgs& args) {
  return Describe(Direction::kBackward, args);
}

constexpr Route<Impl, TriangleMultiplicationForwardArgs> kForward{kOp, &Impl::forward,
                                                                  ForwardProblem};
constexpr Route<Impl, TriangleMultiplicationBackwardArgs> kBackward{kOp, &Impl::backward,
                                                                    BackwardProblem};

}  // namespace

std::size_t TriangleMultiplicationForwardWorkspace(const TriangleMultiplicationForwardArgs& args) {
  Check(args);
  return Select(kForward, args, args.x.device).workspace(args);
}

std::size_t TriangleMultiplicationBackwardWorkspace(
    const TriangleMultiplicationBackwardArgs& args) {
  Check(args);
  return Select(kBackward, args, args.x.device).workspace(args);
}

void TriangleMultiplicationForward(const TriangleMultiplicationForwardArgs& args,
                                   Workspace workspace, Stream stream) {
  Check(args);
  Launch(kOp, Select(kForward, args, args.x.device), args, workspace, stream);
}

void TriangleMultiplicationBackward(const TriangleMultiplicationBackwardArgs& args,
                                    Workspace workspace, Stream stream) {
  Check(args);
  Launch(kOp, Select(kBackward, args, args.x.device), args, workspace, stream);
}

TuningCandidates Candidates(const TriangleMultiplicationForwardArgs& args) {
  Check(args);
  return FindCandidates(kForward, args, args.x.device);
}

TuningCandidates Candidates(const TriangleMultiplicationBackwardArgs& args) {
  Check(args);
  return FindCandidates(kBackward, args, args.x.device);
}

}  // namespace megafold::ops
