#include "megafold/ops/transition.h"

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
// dx, dgamma, dbeta, dg1, dg2, dw2
using BackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using NeedsMask = std::array<bool, 6>;

// What forward returns, uninitialised: the kernel for meta tensors.
ForwardResult AllocateForward(const at::Tensor& x, const OptionalTensor& /*gamma*/,
                              const OptionalTensor& /*beta*/, const at::Tensor& g1,
                              const at::Tensor& g2, const at::Tensor& w2, double /*eps*/) {
  Require(x.dim() >= 1, "transition: x has no dimension, expected [..., K]");
  if (g1.dim() != 2 || g2.dim() != 2 || w2.dim() != 2) {
    Fail(ErrorCode::kInvalidArgument, "transition: g1, g2, w2 have shapes ", ShapeText(g1), ", ",
         ShapeText(g2), ", ", ShapeText(w2), ", expected [E*K, K], [E*K, K], [K, E*K]");
  }
  const auto lead = x.sym_sizes().slice(0, static_cast<std::size_t>(x.dim() - 1));
  const auto statistics = x.options().dtype(StatisticsType(x));
  return {EmptyLike(x, x.sym_sizes(), x.scalar_type()), x.new_empty_symint(lead, statistics),
          x.new_empty_symint(lead, statistics)};
}

ForwardResult Forward(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                      const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2,
                      double eps) {
  auto [y, mean, rstd] = AllocateForward(x, gamma, beta, g1, g2, w2, eps);
  Inputs inputs;
  ops::TransitionForwardArgs args;
  args.x = inputs.Rows("x", x);
  args.gamma = inputs.Packed("gamma", gamma);
  args.beta = inputs.Packed("beta", beta);
  args.g1 = inputs.Packed("g1", g1);
  args.g2 = inputs.Packed("g2", g2);
  args.w2 = inputs.Packed("w2", w2);
  args.eps = static_cast<float>(eps);
  args.y = OutputRows("y", y);
  args.mean = Flat("mean", mean);
  args.rstd = Flat("rstd", rstd);
  Run(&ops::TransitionForwardWorkspace, &ops::TransitionForward, args, x);
  return {y, mean, rstd};
}

// The gradients that `needs` asks for, uninitialised: backward's kernel for meta tensors.
BackwardResult AllocateBackward(const at::Tensor& /*dy*/, const at::Tensor& x,
                                const OptionalTensor& gamma, const OptionalTensor& beta,
                                const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2,
                                const at::Tensor& /*mean*/, const at::Tensor& /*rstd*/,
                                NeedsMask needs) {
  return {EmptyGradient(needs[0], x),    EmptyGradient(needs[1], gamma),
          EmptyGradient(needs[2], beta), EmptyGradient(needs[3], g1),
          EmptyGradient(needs[4], g2),   EmptyGradient(needs[5], w2)};
}

BackwardResult Backward(const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& gamma,
                        const OptionalTensor& beta, const at::Tensor& g1, const at::Tensor& g2,
                        const at::Tensor& w2, const at::Tensor& mean, const at::Tensor& rstd,
                        NeedsMask needs) {
  BackwardResult result = AllocateBackward(dy, x, gamma, beta, g1, g2, w2, mean, rstd, needs);
  const auto& [dx, dgamma, dbeta, dg1, dg2, dw2] = result;
  Inputs inputs;
  ops::TransitionBackwardArgs args;
  args.x = inputs.Rows("x", x);
  args.gamma = inputs.Packed("gamma", gamma);
  args.beta = inputs.Packed("beta", beta);
  args.g1 = inputs.Packed("g1", g1);
  args.g2 = inputs.Packed("g2", g2);
  args.w2 = inputs.Packed("w2", w2);
  args.mean = Flat("mean", mean);
  args.rstd = Flat("rstd", rstd);
  args.dy = inputs.Rows("dy", dy);
  args.dx = OutputRows("dx", dx);
  args.dgamma = ToView("dgamma", dgamma);
  args.dbeta = ToView("dbeta", dbeta);
  args.dg1 = ToView("dg1", dg1);
  args.dg2 = ToView("dg2", dg2);
  args.dw2 = ToView("dw2", dw2);
  Run(&ops::TransitionBackwardWorkspace, &ops::TransitionBackward, args, x);
  return result;
}

ForwardResult CallForward(const at::Tensor& x, const OptionalTensor& gamma,
                          const OptionalTensor& beta, const at::Tensor& g1, const at::Tensor& g2,
                          const at::Tensor& w2, double eps) {
  static const auto op = FindOperator<decltype(Forward)>("megafold::transition_forward");
  return op.call(x, gamma, beta, g1, g2, w2, eps);
}

struct Autograd : torch::autograd::Function<Autograd> {
  static VariableList forward(AutogradContext* context, const at::Tensor& x,
                              const OptionalTensor& gamma, const OptionalTensor& beta,
                              const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2,
                              double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, mean, rstd] = CallForward(x, gamma, beta, g1, g2, w2, eps);
    context->save_for_backward({x, Unwrap(gamma), Unwrap(beta), g1, g2, w2, mean, rstd});
    context->mark_non_differentiable({mean, rstd});
    context->set_materialize_grads(false);
    return {y, mean, rstd};
  }

  static VariableList backward(AutogradContext* context, const VariableList& grads) {
    if (!grads[0].defined()) return VariableList(7);
    const auto saved = context->get_saved_variables();
    static const auto op = FindOperator<decltype(Backward)>("megafold::transition_backward");
    const auto [dx, dgamma, dbeta, dg1, dg2, dw2] =
        op.call(grads[0], saved[0], Wrap(saved[1]), Wrap(saved[2]), saved[3], saved[4], saved[5],
                saved[6], saved[7], Needs<6>(*context, saved));
    return {dx, dgamma, dbeta, dg1, dg2, dw2, at::Tensor()};
  }
};

ForwardResult ForwardAutograd(const at::Tensor& x, const OptionalTensor& gamma,
                              const OptionalTensor& beta, const at::Tensor& g1,
                              const at::Tensor& g2, const at::Tensor& w2, double eps) {
  const auto result = Autograd::apply(x, gamma, beta, g1, g2, w2, eps);
  return {result[0], result[1], result[2]};
}

at::Tensor Composite(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                     const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2, double eps) {
  if (LacksKernel(ops::Operator::kTransition, x)) {
    return composed::Transition(x, gamma, beta, g1, g2, w2, eps);
  }
  return std::get<0>(CallForward(x, gamma, beta, g1, g2, w2, eps));
}

at::Tensor Autocast(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                    const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2, double eps) {
  const AutocastScope cast(x);
  return Transition(cast.Storage(x), cast.Parameter(gamma), cast.Parameter(beta), cast.Storage(g1),
                    cast.Storage(g2), cast.Storage(w2), eps);
}

}  // namespace

at::Tensor Transition(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                      const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2,
                      double eps) {
  static const auto op = FindOperator<decltype(Composite)>("megafold::transition");
  return op.call(x, gamma, beta, g1, g2, w2, eps);
}

TORCH_LIBRARY_FRAGMENT(megafold, library) {
  library.def(
      "transition(Tensor x, Tensor? gamma, Tensor? beta, Tensor g1, Tensor g2, Tensor w2, "
      "float eps=1e-05) -> Tensor",
      Composite);
  library.def(
      "transition_forward(Tensor x, Tensor? gamma, Tensor? beta, Tensor g1, Tensor g2, Tensor w2, "
      "float eps) -> (Tensor y, Tensor mean, Tensor rstd)");
  library.def(
      "transition_backward(Tensor dy, Tensor x, Tensor? gamma, Tensor? beta, Tensor g1, Tensor g2, "
      "Tensor w2, Tensor mean, Tensor rstd, bool[6] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  RegisterKernels(library, "transition", Forward, AllocateForward, ForwardAutograd, Backward,
                  AllocateBackward, Autocast);
}

}  // namespace megafold::torch_ops
