#include "megafold/ops/triangle_multiplication.h"

#include <algorithm>
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
using ForwardResult = std::tuple<at::Tensor, at::Tensor>;  // y, triangle
// dx, then the gradients of the ten parameters in the schema's order
using BackwardResult = decltype(std::tuple_cat(std::array<at::Tensor, 11>{}));
using NeedsMask = std::array<bool, 11>;

// The ten parameters in the schema's order; undefined where absent.
using Params = std::array<at::Tensor, 10>;
constexpr std::array<const char*, 10> kParamNames{
    "gamma_in", "beta_in", "wap", "wag", "wbp", "wbg", "gamma_out", "beta_out", "wop", "wog"};

ops::TriangleMultiplicationParams Views(const std::array<TensorView, 10>& views) {
  return {views[0], views[1], views[2], views[3], views[4],
          views[5], views[6], views[7], views[8], views[9]};
}

ops::TriangleMultiplicationParams InputViews(const Params& params, Inputs& inputs) {
  std::array<TensorView, 10> views;
  for (std::size_t i = 0; i < params.size(); ++i) {
    views[i] = inputs.Packed(kParamNames[i], params[i]);
  }
  return Views(views);
}

ops::TriangleDirection Direction(bool outgoing) {
  return outgoing ? ops::TriangleDirection::kOutgoing : ops::TriangleDirection::kIncoming;
}

// What forward returns, uninitialised: the kernel for meta tensors.
ForwardResult AllocateForward(const at::Tensor& x, const OptionalTensor& /*mask*/,
                              bool /*outgoing*/, const OptionalTensor& /*gamma_in*/,
                              const OptionalTensor& /*beta_in*/, const at::Tensor& wap,
                              const at::Tensor& /*wag*/, const at::Tensor& /*wbp*/,
                              const at::Tensor& /*wbg*/, const OptionalTensor& /*gamma_out*/,
                              const OptionalTensor& /*beta_out*/, const at::Tensor& /*wop*/,
                              const at::Tensor& /*wog*/, double /*eps*/) {
  if (x.dim() != 4) {
    Fail(ErrorCode::kInvalidArgument, "triangle_multiplication: x has shape ", ShapeText(x),
         ", expected [B, N, N, C]");
  }
  if (wap.dim() != 2) {
    Fail(ErrorCode::kInvalidArgument, "triangle_multiplication: wap has shape ", ShapeText(wap),
         ", expected [Ch, C]");
  }
  const auto sizes = x.sym_sizes();
  return {EmptyLike(x, sizes, x.scalar_type()),
          EmptyLike(x, {sizes[0], sizes[1], sizes[2], wap.sym_size(0)}, x.scalar_type())};
}

ForwardResult Forward(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                      const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                      const at::Tensor& wap, const at::Tensor& wag, const at::Tensor& wbp,
                      const at::Tensor& wbg, const OptionalTensor& gamma_out,
                      const OptionalTensor& beta_out, const at::Tensor& wop, const at::Tensor& wog,
                      double eps) {
  auto [y, triangle] = AllocateForward(x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg,
                                       gamma_out, beta_out, wop, wog, eps);
  Inputs inputs;
  ops::TriangleMultiplicationForwardArgs args;
  args.direction = Direction(outgoing);
  args.x = inputs.Packed("x", x);
  args.mask = inputs.Packed("mask", mask);
  args.params = InputViews({Unwrap(gamma_in), Unwrap(beta_in), wap, wag, wbp, wbg,
                            Unwrap(gamma_out), Unwrap(beta_out), wop, wog},
                           inputs);
  args.eps = static_cast<float>(eps);
  args.y = ToView("y", y);
  args.triangle = ToView("triangle", triangle);
  Run(&ops::TriangleMultiplicationForwardWorkspace, &ops::TriangleMultiplicationForward, args, x);
  return {y, triangle};
}

// The gradients that `needs` asks for, uninitialised: backward's kernel for meta tensors.
BackwardResult AllocateBackward(const at::Tensor& /*dy*/, const at::Tensor& x,
                                const OptionalTensor& /*mask*/, bool /*outgoing*/,
                                const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                                const at::Tensor& wap, const at::Tensor& wag, const at::Tensor& wbp,
                                const at::Tensor& wbg, const OptionalTensor& gamma_out,
                                const OptionalTensor& beta_out, const at::Tensor& wop,
                                const at::Tensor& wog, const at::Tensor& /*triangle*/,
                                double /*eps*/, NeedsMask needs) {
  const std::array<OptionalTensor, 11> operands{x,   gamma_in,  beta_in,  wap, wag, wbp,
                                                wbg, gamma_out, beta_out, wop, wog};
  std::array<at::Tensor, 11> gradients;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    gradients[i] = EmptyGradient(needs[i], operands[i]);
  }
  return std::tuple_cat(std::move(gradients));
}

ops::TriangleMultiplicationParams GradientViews(const BackwardResult& result) {
  return std::apply(
      [](const at::Tensor& /*dx*/, const auto&... gradients) {
        return Views({ToView("gradient", gradients)...});
      },
      result);
}

BackwardResult Backward(const at::Tensor& dy, const at::Tensor& x, const OptionalTensor& mask,
                        bool outgoing, const OptionalTensor& gamma_in,
                        const OptionalTensor& beta_in, const at::Tensor& wap, const at::Tensor& wag,
                        const at::Tensor& wbp, const at::Tensor& wbg,
                        const OptionalTensor& gamma_out, const OptionalTensor& beta_out,
                        const at::Tensor& wop, const at::Tensor& wog, const at::Tensor& triangle,
                        double eps, NeedsMask needs) {
  BackwardResult result =
      AllocateBackward(dy, x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg, gamma_out,
                       beta_out, wop, wog, triangle, eps, needs);
  Inputs inputs;
  ops::TriangleMultiplicationBackwardArgs args;
  args.direction = Direction(outgoing);
  args.x = inputs.Packed("x", x);
  args.mask = inputs.Packed("mask", mask);
  args.params = InputViews({Unwrap(gamma_in), Unwrap(beta_in), wap, wag, wbp, wbg,
                            Unwrap(gamma_out), Unwrap(beta_out), wop, wog},
                           inputs);
  args.eps = static_cast<float>(eps);
  args.triangle = inputs.Packed("triangle", triangle);
  args.dy = inputs.Packed("dy", dy);
  args.dx = ToView("dx", std::get<0>(result));
  args.dparams = GradientViews(result);
  Run(&ops::TriangleMultiplicationBackwardWorkspace, &ops::TriangleMultiplicationBackward, args, x);
  return result;
}

ForwardResult CallForward(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                          const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                          const at::Tensor& wap, const at::Tensor& wag, const at::Tensor& wbp,
                          const at::Tensor& wbg, const OptionalTensor& gamma_out,
                          const OptionalTensor& beta_out, const at::Tensor& wop,
                          const at::Tensor& wog, double eps) {
  static const auto op =
      FindOperator<decltype(Forward)>("megafold::triangle_multiplication_forward");
  return op.call(x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg, gamma_out, beta_out, wop,
                 wog, eps);
}

struct Autograd : torch::autograd::Function<Autograd> {
  static VariableList forward(AutogradContext* context, const at::Tensor& x,
                              const OptionalTensor& mask, const OptionalTensor& gamma_in,
                              const OptionalTensor& beta_in, const at::Tensor& wap,
                              const at::Tensor& wag, const at::Tensor& wbp, const at::Tensor& wbg,
                              const OptionalTensor& gamma_out, const OptionalTensor& beta_out,
                              const at::Tensor& wop, const at::Tensor& wog, bool outgoing,
                              double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, triangle] = CallForward(x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg,
                                           gamma_out, beta_out, wop, wog, eps);
    context->save_for_backward({x, Unwrap(mask), Unwrap(gamma_in), Unwrap(beta_in), wap, wag, wbp,
                                wbg, Unwrap(gamma_out), Unwrap(beta_out), wop, wog, triangle});
    context->saved_data["outgoing"] = outgoing;
    context->saved_data["eps"] = eps;
    context->mark_non_differentiable({triangle});
    context->set_materialize_grads(false);
    return {y, triangle};
  }

  static VariableList backward(AutogradContext* context, const VariableList& grads) {
    VariableList result(14);  // x, mask, ten parameters, outgoing, eps
    if (!grads[0].defined()) return result;
    const auto s = context->get_saved_variables();
    const auto needed = Needs<12>(*context, s);
    NeedsMask needs;
    needs[0] = needed[0];
    std::copy(needed.begin() + 2, needed.end(), needs.begin() + 1);
    static const auto op =
        FindOperator<decltype(Backward)>("megafold::triangle_multiplication_backward");
    const auto gradients =
        op.call(grads[0], s[0], Wrap(s[1]), context->saved_data["outgoing"].toBool(), Wrap(s[2]),
                Wrap(s[3]), s[4], s[5], s[6], s[7], Wrap(s[8]), Wrap(s[9]), s[10], s[11], s[12],
                context->saved_data["eps"].toDouble(), needs);
    std::size_t next = 0;
    const auto place = [&](const at::Tensor& gradient) {
      result[next] = gradient;
      next += next == 0 ? 2 : 1;  // the mask has none
    };
    std::apply([&](const auto&... gradient) { (place(gradient), ...); }, gradients);
    return result;
  }
};

ForwardResult ForwardAutograd(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                              const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                              const at::Tensor& wap, const at::Tensor& wag, const at::Tensor& wbp,
                              const at::Tensor& wbg, const OptionalTensor& gamma_out,
                              const OptionalTensor& beta_out, const at::Tensor& wop,
                              const at::Tensor& wog, double eps) {
  RequireNoMaskGradient("triangle_multiplication", mask);
  const auto result = Autograd::apply(x, mask, gamma_in, beta_in, wap, wag, wbp, wbg, gamma_out,
                                      beta_out, wop, wog, outgoing, eps);
  return {result[0], result[1]};
}

at::Tensor Composite(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                     const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                     const at::Tensor& wap, const at::Tensor& wag, const at::Tensor& wbp,
                     const at::Tensor& wbg, const OptionalTensor& gamma_out,
                     const OptionalTensor& beta_out, const at::Tensor& wop, const at::Tensor& wog,
                     double eps) {
  if (LacksKernel(ops::Operator::kTriangleMultiplication, x)) {
    RequireNoMaskGradient("triangle_multiplication", mask);
    return composed::TriangleMultiplication(x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp,
                                            wbg, gamma_out, beta_out, wop, wog, eps);
  }
  return std::get<0>(CallForward(x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg,
                                 gamma_out, beta_out, wop, wog, eps));
}

at::Tensor Autocast(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                    const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                    const at::Tensor& wap, const at::Tensor& wag, const at::Tensor& wbp,
                    const at::Tensor& wbg, const OptionalTensor& gamma_out,
                    const OptionalTensor& beta_out, const at::Tensor& wop, const at::Tensor& wog,
                    double eps) {
  const AutocastScope cast(x);
  return TriangleMultiplication(
      cast.Storage(x), cast.Parameter(mask), outgoing, cast.Parameter(gamma_in),
      cast.Parameter(beta_in), cast.Storage(wap), cast.Storage(wag), cast.Storage(wbp),
      cast.Storage(wbg), cast.Parameter(gamma_out), cast.Parameter(beta_out), cast.Storage(wop),
      cast.Storage(wog), eps);
}

}  // namespace

at::Tensor TriangleMultiplication(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                                  const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                                  const at::Tensor& wap, const at::Tensor& wag,
                                  const at::Tensor& wbp, const at::Tensor& wbg,
                                  const OptionalTensor& gamma_out, const OptionalTensor& beta_out,
                                  const at::Tensor& wop, const at::Tensor& wog, double eps) {
  static const auto op = FindOperator<decltype(Composite)>("megafold::triangle_multiplication");
  return op.call(x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg, gamma_out, beta_out, wop,
                 wog, eps);
}

#define MEGAFOLD_TRIANGLE_PARAMETERS                                                       \
  "Tensor x, Tensor? mask, bool outgoing, Tensor? gamma_in, Tensor? beta_in, Tensor wap, " \
  "Tensor wag, Tensor wbp, Tensor wbg, Tensor? gamma_out, Tensor? beta_out, Tensor wop, "  \
  "Tensor wog, "

TORCH_LIBRARY_FRAGMENT(megafold, library) {
  library.def("triangle_multiplication(" MEGAFOLD_TRIANGLE_PARAMETERS "float eps=1e-05) -> Tensor",
              Composite);
  library.def("triangle_multiplication_forward(" MEGAFOLD_TRIANGLE_PARAMETERS
              "float eps) -> (Tensor y, Tensor triangle)");
  library.def("triangle_multiplication_backward(Tensor dy, " MEGAFOLD_TRIANGLE_PARAMETERS
              "Tensor triangle, float eps, bool[11] needs) -> (Tensor, Tensor, Tensor, Tensor, "
              "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  RegisterKernels(library, "triangle_multiplication", Forward, AllocateForward, ForwardAutograd,
                  Backward, AllocateBackward, Autocast);
}

#undef MEGAFOLD_TRIANGLE_PARAMETERS

}  // namespace megafold::torch_ops
