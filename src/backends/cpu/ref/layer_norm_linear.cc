#include "backends/cpu/ref/layer_norm_linear.h"

#include "backends/cpu/ref/dense.h"
#include "backends/cpu/ref/layers.h"

namespace megafold::cpu::ref {

void LayerNormLinearForward(const ops::LayerNormLinearForwardArgs& args, Workspace, Stream) {
  const LinearShape shape{args.x.size(0), args.x.size(1), args.weight.size(0)};
  const LayerNormResult u = LayerNorm(Read(args.x), ReadOr(args.gamma, shape.features, 1),
                                      ReadOr(args.beta, shape.features, 0), args.eps);
  const Dense bias = ReadOr(args.linear_bias, shape.outputs, 0);
  Dense y = Linear(u.normalised, Read(args.weight), shape);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias[i % bias.size()];
  Write(args.y, y);
  Write(args.mean, u.mean);
  Write(args.rstd, u.rstd);
}

void LayerNormLinearBackward(const ops::LayerNormLinearBackwardArgs& args, Workspace, Stream) {
  const LinearShape shape{args.x.size(0), args.x.size(1), args.weight.size(0)};
  const Dense gamma = ReadOr(args.gamma, shape.features, 1);
  const Dense beta = ReadOr(args.beta, shape.features, 0);
  const LayerNormResult u =
      LayerNormFrom(Read(args.x), gamma, beta, Read(args.mean), Read(args.rstd));
  const Dense dy = Read(args.dy);

  const Dense du = LinearInputGradient(dy, Read(args.weight), shape);
  const LayerNormGradients grads = LayerNormBackward(u, gamma, du);
  Dense dbias(static_cast<std::size_t>(shape.outputs));
  for (std::size_t i = 0; i < dy.size(); ++i) dbias[i % dbias.size()] += dy[i];

  Write(args.dx, grads.dx);
  Write(args.dgamma, grads.dgamma);
  Write(args.dbeta, grads.dbeta);
  Write(args.dweight, LinearWeightGradient(dy, u.normalised, shape));
  Write(args.dlinear_bias, dbias);
}

}  // namespace megafold::cpu::ref
