#include "torch_ops/composed.h"

#include <ATen/ATen.h>

#include <atomic>
#include <limits>

#include "megafold/core/error.h"
#include "torch_ops/tensors.h"

namespace megafold::torch_ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The kind of device whose kernels would run, or nothing for one that the library does not know
// (meta tensors).
std::optional<DeviceType> KindOf(const at::Device& device) {
  if (!device.is_cpu() && !device.is_cuda()) return std::nullopt;
  return ToDevice("operand", device).type;
}

// One bit an operator: its absence has been told.
std::atomic<unsigned> told{0};

bool TellOnce(ops::Operator op) {
  const unsigned bit = 1U << static_cast<unsigned>(op);
  return (told.fetch_or(bit) & bit) == 0;
}

}  // namespace

bool LacksKernel(ops::Operator op, const at::Tensor& lead) {
  const auto kind = KindOf(lead.device());
  if (!kind || ops::IsImplemented(op, *kind)) return false;
  if (TellOnce(op)) {
    TORCH_WARN("megafold::", ops::Name(op), ": this build has no kernel for ", Name(*kind),
               "; PyTorch's operators compute it there");
  }
  return true;
}

std::vector<std::string> OperatorsWithoutKernel(const at::Device& device) {
  std::vector<std::string> names;
  const auto kind = KindOf(device);
  for (const ops::Operator op : ops::kOperators) {
    if (!kind || ops::IsImplemented(op, *kind)) continue;
    TellOnce(op);
    names.emplace_back(ops::Name(op));
  }
  return names;
}

namespace composed {

at::Tensor EvoAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const OptionalTensor& mask, const OptionalTensor& bias, double scale) {
  // [B, S, H, Nq, Nk]
  at::Tensor scores = at::matmul((q * scale).transpose(2, 3), k.permute({0, 1, 3, 4, 2}));
  if (bias) scores = scores + *bias;
  if (mask) {
    scores = mask->scalar_type() == at::kBool
                 ? scores.masked_fill(mask->logical_not(), -std::numeric_limits<double>::infinity())
                 : scores + *mask;
  }
  // Zeros, and zero gradients, where every score is -inf.
  const at::Tensor weights = at::_safe_softmax(scores, -1, StatisticsType(q)).to(v.scalar_type());
  return at::matmul(weights, v.transpose(2, 3)).transpose(2, 3);
}

at::Tensor LayerNorm(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                     double eps) {
  // PyTorch's wants one type: the wider, that of the parameters, where they differ.
  const OptionalTensor& parameter = gamma ? gamma : beta;
  const at::ScalarType type = parameter ? parameter->scalar_type() : x.scalar_type();
  const at::Tensor y = at::layer_norm(x.to(type), {x.size(-1)}, gamma, beta, eps);
  return type == x.scalar_type() ? y : y.to(x.scalar_type());
}

at::Tensor LayerNormLinear(const at::Tensor& x, const OptionalTensor& gamma,
                           const OptionalTensor& beta, const at::Tensor& weight,
                           const OptionalTensor& linear_bias, double eps) {
  const OptionalTensor bias =
      linear_bias ? OptionalTensor(linear_bias->to(weight.scalar_type())) : std::nullopt;
  return at::linear(LayerNorm(x, gamma, beta, eps), weight, bias);
}

at::Tensor Transition(const at::Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                      const at::Tensor& g1, const at::Tensor& g2, const at::Tensor& w2,
                      double eps) {
  const at::Tensor u = LayerNorm(x, gamma, beta, eps);
  return at::linear(at::silu(at::linear(u, g1)) * at::linear(u, g2), w2);
}

at::Tensor TriangleMultiplication(const at::Tensor& x, const OptionalTensor& mask, bool outgoing,
                                  const OptionalTensor& gamma_in, const OptionalTensor& beta_in,
                                  const at::Tensor& wap, const at::Tensor& wag,
                                  const at::Tensor& wbp, const at::Tensor& wbg,
                                  const OptionalTensor& gamma_out, const OptionalTensor& beta_out,
                                  const at::Tensor& wop, const at::Tensor& wog, double eps) {
  const at::Tensor u = LayerNorm(x, gamma_in, beta_in, eps);
  // [B, Ch, N, N]: the sum over k is a batched matrix product
  const auto project = [&](const at::Tensor& gate, const at::Tensor& value) {
    at::Tensor projected = at::sigmoid(at::linear(u, gate)) * at::linear(u, value);
    if (mask) {
      const bool is_bool = mask->scalar_type() == at::kBool;
      projected = projected * (is_bool ? *mask : mask->to(projected.scalar_type())).unsqueeze(-1);
    }
    return projected.permute({0, 3, 1, 2});
  };
  const at::Tensor a = project(wag, wap);
  const at::Tensor b = project(wbg, wbp);
  const at::Tensor t =
      outgoing ? at::matmul(a, b.transpose(2, 3)) : at::matmul(a.transpose(2, 3), b);
  return at::linear(LayerNorm(t.permute({0, 2, 3, 1}), gamma_out, beta_out, eps), wop) *
         at::sigmoid(at::linear(u, wog));
}

}  // namespace composed
}  // namespace megafold::torch_ops
