#include "megafold/ops/layer_norm_linear.h"

#include <array>
#include <span>

#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/hip/hip_backend.h"
#include "ops/checks.h"
#include "ops/dispatch.h"

namespace megafold::ops {
namespace {

constexpr const char* kOp = "layer_norm_linear";
using Impl = LayerNormLinearImplementation;

std::array<std::span<const Impl>, 3> Backends() {
  return {cuda::LayerNormLinearImplementations(), hip::LayerNormLinearImplementations(),
          cpu::LayerNormLinearImplementations()};
}

void CheckEps(const Checks& checks, float eps) {
  checks.That(eps > 0, "eps is ", eps, ", expected a positive number");
}

// What forward and backward read alike. Returns the checks bound to x's device and type.
template <typename Args>
Checks CheckInputs(const Args& args) {
  Checks checks(kOp, "x", args.x, 2);
  const std::int64_t rows = args.x.size(0);
  const std::int64_t features = args.x.size(1);
  checks.That(features > 0, "x has shape ", ShapeString(args.x), ", expected at least one feature");
  checks.That(args.weight.rank == 2, "weight has shape ", ShapeString(args.weight),
              ", expected [C, ", features, "]");
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

}  // namespace

std::size_t LayerNormLinearForwardWorkspace(const LayerNormLinearForwardArgs& args) {
  Check(args);
  return Select(kOp, Backends(), &Impl::forward, args, args.x.device).workspace(args);
}

std::size_t LayerNormLinearBackwardWorkspace(const LayerNormLinearBackwardArgs& args) {
  Check(args);
  return Select(kOp, Backends(), &Impl::backward, args, args.x.device).workspace(args);
}

void LayerNormLinearForward(const LayerNormLinearForwardArgs& args, Workspace workspace,
                            Stream stream) {
  Check(args);
  Launch(kOp, Select(kOp, Backends(), &Impl::forward, args, args.x.device), args, workspace,
         stream);
}

void LayerNormLinearBackward(const LayerNormLinearBackwardArgs& args, Workspace workspace,
                             Stream stream) {
  Check(args);
  Launch(kOp, Select(kOp, Backends(), &Impl::backward, args, args.x.device), args, workspace,
         stream);
}

}  // namespace megafold::ops
