#include "megafold/ops/evo_attention.h"

#include <array>
#include <cmath>
#include <tuple>

#include "megafold/core/error.h"
#include "torch_ops/composed.h"
#include "torch_ops/dispatch.h"
#include "torch_ops/ops.h"
#include "torch_ops/tensors.h"

namespace megafold::torch_ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using VariableList = torch::autograd::variable_list;
using ForwardResult = std::tuple<at::Tensor, at::Tensor>;  // out, lse
using BackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // dq dk dv dbias

// A tensor of like's shape, rows of D contiguous, dimensions S and N in the order in which `like`
// has them in memory: the ending node's attention gives its result in the order of its transposed
// operands, so that transposing back is free. Symbolic sizes: this also runs on meta tensors.
at::Tensor EmptyInOrderOf(const at::Tensor& like) {
  const auto sizes = like.sym_sizes();
  if (TORCH_GUARD_OR_FALSE(like.sym_stride(1).sym_lt(like.sym_stride(2)))) {
    return EmptyLike(like, {sizes[0], sizes[2], sizes[1], sizes[3], sizes[4]}, like.scalar_type())
        .transpose(1, 2);
  }
  return EmptyLike(like, sizes, like.scalar_type());
}

void RequireDimensions(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const OptionalTensor& mask, const OptionalTensor& bias) {
  if (q.dim() != 5 || k.dim() != 5 || v.dim() != 5) {
    Fail(ErrorCode::kInvalidArgument, "evo_attention: q, k, v have shapes ", ShapeText(q), ", ",
         ShapeText(k), ", ", ShapeText(v), ", expected [B, S, N, H, D]");
  }
  Require(!mask || !mask->defined() || mask->dim() == 5, "evo_attention: mask has ",
          mask ? mask->dim() : 0, " dimensions, expected [B or 1, S or 1, 1, 1, Nk]");
  Require(!bias || !bias->defined() || bias->dim() == 5, "evo_attention: bias has ",
          bias ? bias->dim() : 0, " dimensions, expected [B or 1, 1, H, Nq, Nk]");
}

// What forward returns, uninitialised: the kernel for meta tensors.
ForwardResult AllocateForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const OptionalTensor& mask, const OptionalTensor& bias,
                              std::optional<double> /*scale*/) {
  RequireDimensions(q, k, v, mask, bias);
  const auto sizes = q.sym_sizes();
  at::Tensor lse = q.new_empty_symint({sizes[0], sizes[1], sizes[3], sizes[2]},
                                      q.options().dtype(StatisticsType(q)));
  return {EmptyInOrderOf(q), lse};
}

double ScaleOf(const at::Tensor& q, std::optional<double> scale) {
  if (scale) return *scale;
  return 1.0 / std::sqrt(static_cast<double>(q.sym_size(-1).guard_int(__FILE__, __LINE__)));
}

// PyTorch's own switch: torch.backends.cuda.matmul.allow_tf32, off by default.
bool AllowTf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

ForwardResult Forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const OptionalTensor& mask, const OptionalTensor& bias,
                      std::optional<double> scale) {
  auto [out, lse] = AllocateForward(q, k, v, mask, bias, scale);
  Inputs inputs;
  ops::EvoAttentionForwardArgs args;
  args.q = inputs.Packed("q", q);
  args.k = inputs.Packed("k", k);
  args.v = inputs.Packed("v", v);
  args.mask = ToView("mask", mask);
  args.bias = ToView("bias", bias);
  args.scale = static_cast<float>(ScaleOf(q, scale));
  args.allow_tf32 = AllowTf32();
  args.out = ToView("out", out);
  args.lse = ToView("lse", lse);
  Run(&ops::EvoAttentionForwardWorkspace, &ops::EvoAttentionForward, args, q);
  return {out, lse};
}

// The gradients that `needs` (q, k, v, bias) asks for, uninitialised, dbias still in float32.
BackwardResult AllocateBackward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const OptionalTensor& bias, std::array<bool, 4> needs) {
  BackwardResult result;
  if (needs[0]) std::get<0>(result) = EmptyInOrderOf(q);
  if (needs[1]) std::get<1>(result) = EmptyInOrderOf(k);
  if (needs[2]) std::get<2>(result) = EmptyInOrderOf(v);
  if (needs[3]) {
    Require(bias.has_value(),
            "evo_attention: the bias gradient is asked for, but there is no bias");
    std::get<3>(result) = EmptyLike(*bias, bias->sym_sizes(), StatisticsType(q));
  }
  return result;
}

void CastLast(BackwardResult& result, const OptionalTensor& bias) {
  at::Tensor& dbias = std::get<3>(result);
  if (dbias.defined()) dbias = dbias.to(bias->scalar_type());
}

BackwardResult Backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const OptionalTensor& mask, const OptionalTensor& bias,
                        const at::Tensor& out, const at::Tensor& lse, std::optional<double> scale,
                        std::array<bool, 4> needs) {
  BackwardResult result = AllocateBackward(q, k, v, bias, needs);
  Inputs inputs;
  ops::EvoAttentionBackwardArgs args;
  args.q = inputs.Packed("q", q);
  args.k = inputs.Packed("k", k);
  args.v = inputs.Packed("v", v);
  args.mask = ToView("mask", mask);
  args.bias = ToView("bias", bias);
  args.scale = static_cast<float>(ScaleOf(q, scale));
  args.allow_tf32 = AllowTf32();
  args.out = inputs.Packed("out", out);
  args.lse = ToView("lse", lse);
  args.dout = inputs.Packed("dout", dout);
  args.dq = ToView("dq", std::get<0>(result));
  args.dk = ToView("dk", std::get<1>(result));
  args.dv = ToView("dv", std::get<2>(result));
  args.dbias = ToView("dbias", std::get<3>(result));
  Run(&ops::EvoAttentionBackwardWorkspace, &ops::EvoAttentionBackward, args, q);
  CastLast(result, bias);
  return result;
}

BackwardResult BackwardMeta(const at::Tensor& /*dout*/, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const OptionalTensor& /*mask*/,
                            const OptionalTensor& bias, const at::Tensor& /*out*/,
                            const at::Tensor& /*lse*/, std::optional<double> /*scale*/,
                            std::array<bool, 4> needs) {
  BackwardResult result = AllocateBackward(q, k, v, bias, needs);
  CastLast(result, bias);
  return result;
}

ForwardResult CallForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const OptionalTensor& mask, const OptionalTensor& bias,
                          std::optional<double> scale) {
  static const auto op = FindOperator<decltype(Forward)>("megafold::evo_attention_forward");
  return op.call(q, k, v, mask, bias, scale);
}

struct Autograd : torch::autograd::Function<Autograd> {
  static VariableList forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, const OptionalTensor& mask,
                              const OptionalTensor& bias, std::optional<double> scale) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse] = CallForward(q, k, v, mask, bias, scale);
    context->save_for_backward({q, k, v, Unwrap(mask), Unwrap(bias), out, lse});
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({lse});
    context->set_materialize_grads(false);
    return {out, lse};
  }

  static VariableList backward(AutogradContext* context, const VariableList& grads) {
    if (!grads[0].defined()) return VariableList(6);
    const auto saved = context->get_saved_variables();
    const auto needed = Needs<5>(*context, saved);
    const std::array<bool, 4> needs{needed[0], needed[1], needed[2], needed[4]};
    static const auto op = FindOperator<decltype(Backward)>("megafold::evo_attention_backward");
    const auto [dq, dk, dv, dbias] =
        op.call(grads[0], saved[0], saved[1], saved[2], Wrap(saved[3]), Wrap(saved[4]), saved[5],
                saved[6], context->saved_data["scale"].toOptional<double>(), needs);
    return {dq, dk, dv, at::Tensor(), dbias, at::Tensor()};
  }
};

ForwardResult ForwardAutograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const OptionalTensor& mask, const OptionalTensor& bias,
                              std::optional<double> scale) {
  RequireNoMaskGradient("evo_attention", mask);
  const auto result = Autograd::apply(q, k, v, mask, bias, scale);
  return {result[0], result[1]};
}

at::Tensor Composite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const OptionalTensor& mask, const OptionalTensor& bias,
                     std::optional<double> scale) {
  if (LacksKernel(ops::Operator::kEvoAttention, q)) {
    RequireDimensions(q, k, v, mask, bias);
    RequireNoMaskGradient("evo_attention", mask);
    return composed::EvoAttention(q, k, v, mask, bias, ScaleOf(q, scale));
  }
  return std::get<0>(CallForward(q, k, v, mask, bias, scale));
}

at::Tensor Autocast(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const OptionalTensor& mask, const OptionalTensor& bias,
                    std::optional<double> scale) {
  const AutocastScope cast(q);
  return EvoAttention(cast.Storage(q), cast.Storage(k), cast.Storage(v), cast.Parameter(mask),
                      cast.Parameter(bias), scale);
}

}  // namespace

at::Tensor EvoAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const OptionalTensor& mask, const OptionalTensor& bias,
                        std::optional<double> scale) {
  static const auto op = FindOperator<decltype(Composite)>("megafold::evo_attention");
  return op.call(q, k, v, mask, bias, scale);
}

TORCH_LIBRARY_FRAGMENT(megafold, library) {
  library.def(
      "evo_attention(Tensor q, Tensor k, Tensor v, Tensor? mask=None, Tensor? bias=None, "
      "float? scale=None) -> Tensor",
      Composite);
  library.def(
      "evo_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? bias, "
      "float? scale) -> (Tensor out, Tensor lse)");
  library.def(
      "evo_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? "
      "bias, "
      "Tensor out, Tensor lse, float? scale, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)");
  RegisterKernels(library, "evo_attention", Forward, AllocateForward, ForwardAutograd, Backward,
                  BackwardMeta, Autocast);
}

}  // namespace megafold::torch_ops
