#include "megafold/ops/layer_norm_linear.h"

#include <array>
#include <tuple>

#include "megafold/core/error.h"
#include "torch_ops/composed.h"
#include "torch_ops/dispatch.h"
#include "torch_ops/ops.h"
#include "torch_ops/tensors.h"

namespace megafold::torch_ops {
namespace {

using torch::autograd::AutogradContext;
using OptionalTensor = std::optional<at::Tensor>;
using VariableList = torch::autograd::variable_list;
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // y, mean, rstd
// dx, dgamma, dbeta, dweight, dlinear_bias
using BackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using NeedsMask = std::array<bool, 5>;

// What forward returns, uninitialised: the kernel for meta tensors.
ForwardResult AllocateForward(const at::Tensor& x, const OptionalTensor& /*gamma*/,
                              const OptionalTensor& /*beta*/, const at::Tensor& weight,
                              const OptionalTensor& /*linear_bias*/, double /*eps*/) {
  Require(x.dim() >= 1, "layer_norm_linear: x has no dimension, expected [..., K]");
  if (weight.dim() != 2) {
    Fail(ErrorCode::kInvalidArgument, "layer_norm_linear: weight has shape ", ShapeText(weight),
         ", expected [C, K]");
  }
  c10::SymDimVector lead(x.sym_sizes().begin(), x.sym_sizes().end() - 1);
  const auto statistics = x.options().dtype(StatisticsType(x));
  at::Tensor mean = x.new_empty_symint(lead, statistics);
  at::Tensor rstd = x.new_empty_symint(lead, statistics);
  lead.push_back(weight.sym_size(0));
  return {EmptyLike(x, lead, x.scalar_type()), mean, rstd};
}

ForwardResult Forward(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                      const at::Tensor& weight, const OptionalTensor& linear_bias, double eps) {
  auto [y, mean, rstd] = AllocateForward(x, gamma, beta, weight, linear_bias, eps);
  Inputs inputs;
  ops::LayerNormLinearForwardArgs args;
  args.x = inputs.Rows("x", x);
  args.gamma = inputs.Packed("gamma", gamma);
  args.beta = inputs.Packed("beta", beta);
  args.weight = inputs.Packed("weight", weight);
  args.linear_bias = inputs.Packed("linear_bias", linear_bias);
  args.eps = static_cast<float>(eps);
  args.y = OutputRows("y", y);
  args.mean = Flat("mean", mean);
  args.rstd = Flat("rstd", rstd);
  Run(&ops::LayerNormLinearForwardWorkspace, &ops::LayerNormLinearForward, args, x);
  return {y, mean, rstd};
}

// The gradients that `needs` asks for, uninitialised: backward's kernel for meta tensors.
BackwardResult AllocateBackward(const at::Tensor& /*dy*/, const at::Tensor& x,
                                const OptionalTensor& gamma, const OptionalTensor& beta,
                                const at::Tensor& weight, const OptionalTensor& linear_bias,
                                const at::Tensor& /*mean*/, const at::Tensor& /*rstd*/,
                                NeedsMask needs) {
  return {EmptyGradient(needs[0], x), EmptyGradient(needs[1], gamma), EmptyGradient(needs[2], beta),
          EmptyGradient(needs[3], weight), EmptyGradient(needs[4], linear_bias)};
}

BackwardResult Backward(const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& gamma,
                        const OptionalTensor& beta, const at::Tensor& weight,
                        const OptionalTensor& linear_bias, const at::Tensor& mean,
                        const at::Tensor& rstd, NeedsMask needs) {
  BackwardResult result =
      AllocateBackward(dy, x, gamma, beta, weight, linear_bias, mean, rstd, needs);
  const auto& [dx, dgamma, dbeta, dweight, dlinear_bias] = result;
  Inputs inputs;
  ops::LayerNormLinearBackwardArgs args;
  args.x = inputs.Rows("x", x);
  args.gamma = inputs.Packed("gamma", gamma);
  args.beta = inputs.Packed("beta", beta);
  args.weight = inputs.Packed("weight", weight);
  args.mean = Flat("mean", mean);
  args.rstd = Flat("rstd", rstd);
  args.dy = inputs.Rows("dy", dy);
  args.dx = OutputRows("dx", dx);
  args.dgamma = ToView("dgamma", dgamma);
  args.dbeta = ToView("dbeta", dbeta);
  args.dweight = ToView("dweight", dweight);
  args.dlinear_bias = ToView("dlinear_bias", dlinear_bias);
  Run(&ops::LayerNormLinearBackwardWorkspace, &ops::LayerNormLinearBackward, args, x);
  return result;
}

ForwardResult CallForward(const at::Tensor& x, const OptionalTensor& gamma,
                          const OptionalTensor& beta, const at::Tensor& weight,
                          const OptionalTensor& linear_bias, double eps) {
  static const auto op = FindOperator<decltype(Forward)>("megafold::layer_norm_linear_forward");
  return op.call(x, gamma, beta, weight, linear_bias, eps);
}

struct Autograd : torch::autograd::Function<Autograd> {
  static VariableList forward(AutogradContext* context, const at::Tensor& x,
                              const OptionalTensor& gamma, const OptionalTensor& beta,
                              const at::Tensor& weight, const OptionalTensor& linear_bias,
                              double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, mean, rstd] = CallForward(x, gamma, beta, weight, linear_bias, eps);
    context->save_for_backward(
        {x, Unwrap(gamma), Unwrap(beta), weight, Unwrap(linear_bias), mean, rstd});
    context->mark_non_differentiable({mean, rstd});
    context->set_materialize_grads(false);
    return {y, mean, rstd};
  }

  static VariableList backward(AutogradContext* context, const VariableList& grads) {
    if (!grads[0].defined()) return VariableList(6);
    const auto saved = context->get_saved_variables();
    static const auto op = FindOperator<decltype(Backward)>("megafold::layer_norm_linear_backward");
    const auto [dx, dgamma, dbeta, dweight, dlinear_bias] =
        op.call(grads[0], saved[0], Wrap(saved[1]), Wrap(saved[2]), saved[3], Wrap(saved[4]),
                saved[5], saved[6], Needs<5>(*context, saved));
    return {dx, dgamma, dbeta, dweight, dlinear_bias, at::Tensor()};
  }
};

ForwardResult ForwardAutograd(const at::Tensor& x, const OptionalTensor& gamma,
                              const OptionalTensor& beta, const at::Tensor& weight,
                              const OptionalTensor& linear_bias, double eps) {
  const auto result = Autograd::apply(x, gamma, beta, weight, linear_bias, eps);
  return {result[0], result[1], result[2]};
}

at::Tensor Composite(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                     const at::Tensor& weight, const OptionalTensor& linear_bias, double eps) {
  if (LacksKernel(ops::Operator::kLayerNormLinear, x)) {
    return composed::LayerNormLinear(x, gamma, beta, weight, linear_bias, eps);
  }
  return std::get<0>(CallForward(x, gamma, beta, weight, linear_bias, eps));
}

at::Tensor Autocast(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                    const at::Tensor& weight, const OptionalTensor& linear_bias, double eps) {
  const AutocastScope cast(x);
  return LayerNormLinear(cast.Storage(x), cast.Parameter(gamma), cast.Parameter(beta),
                         cast.Storage(weight), cast.Parameter(linear_bias), eps);
}

}  // namespace

at::Tensor LayerNormLinear(const at::Tensor& x, const OptionalTensor& gamma,
                           const OptionalTensor& beta, const at::Tensor& weight,
                           const OptionalTensor& linear_bias, double eps) {
  static const auto op = FindOperator<decltype(Composite)>("megafold::layer_norm_linear");
  return op.call(x, gamma, beta, weight, linear_bias, eps);
}

TORCH_LIBRARY_FRAGMENT(megafold, library) {
  library.def(
      "layer_norm_linear(Tensor x, Tensor? gamma, Tensor? beta, Tensor weight, "
      "Tensor? linear_bias=None, float eps=1e-05) -> Tensor",
      Composite);
  library.def(
      "layer_norm_linear_forward(Tensor x, Tensor? gamma, Tensor? beta, Tensor weight, "
      "Tensor? linear_bias, float eps) -> (Tensor y, Tensor mean, Tensor rstd)");
  library.def(
      "layer_norm_linear_backward(Tensor dy, Tensor x, Tensor? gamma, Tensor? beta, Tensor weight, "
      "Tensor? linear_bias, Tensor mean, Tensor rstd, bool[5] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  RegisterKernels(library, "layer_norm_linear", Forward, AllocateForward, ForwardAutograd, Backward,
                  AllocateBackward, Autocast);
}

}  // namespace megafold::torch_ops
