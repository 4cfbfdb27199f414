#include "backends/cpu/ref/transition.h"

#include "backends/cpu/ref/dense.h"
#include "backends/cpu/ref/layers.h"

namespace megafold::cpu::ref {

void TransitionForward(const ops::TransitionForwardArgs& args, Workspace, Stream) {
  const LinearShape expand{args.x.size(0), args.x.size(1), args.g1.size(0)};
  const LinearShape project{expand.rows, expand.outputs, expand.features};
  const LayerNormResult u = LayerNorm(Read(args.x), ReadOr(args.gamma, expand.features, 1),
                                      ReadOr(args.beta, expand.features, 0), args.eps);
  const Dense gate = Linear(u.normalised, Read(args.g1), expand);
  const Dense value = Linear(u.normalised, Read(args.g2), expand);
  Dense hidden(gate.size());
  for (std::size_t i = 0; i < gate.size(); ++i) hidden[i] = gate[i] * Sigmoid(gate[i]) * value[i];
  Write(args.y, Linear(hidden, Read(args.w2), project));
  Write(args.mean, u.mean);
  Write(args.rstd, u.rstd);
}

void TransitionBackward(const ops::TransitionBackwardArgs& args, Workspace, Stream) {
  const LinearShape expand{args.x.size(0), args.x.size(1), args.g1.size(0)};
  const LinearShape project{expand.rows, expand.outputs, expand.features};
  const Dense gamma = ReadOr(args.gamma, expand.features, 1);
  const Dense beta = ReadOr(args.beta, expand.features, 0);
  const LayerNormResult u =
      LayerNormFrom(Read(args.x), gamma, beta, Read(args.mean), Read(args.rstd));
  const Dense g1 = Read(args.g1);
  const Dense g2 = Read(args.g2);
  const Dense gate = Linear(u.normalised, g1, expand);
  const Dense value = Linear(u.normalised, g2, expand);
  const Dense dy = Read(args.dy);
  const Dense dhidden = LinearInputGradient(dy, Read(args.w2), project);

  Dense hidden(gate.size());
  Dense dgate(gate.size());
  Dense dvalue(gate.size());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double s = Sigmoid(gate[i]);
    const double silu = gate[i] * s;
    const double dsilu = s * (1 + gate[i] * (1 - s));
    hidden[i] = silu * value[i];
    dgate[i] = dhidden[i] * value[i] * dsilu;
    dvalue[i] = dhidden[i] * silu;
  }
  Dense du = LinearInputGradient(dgate, g1, expand);
  Accumulate(du, LinearInputGradient(dvalue, g2, expand));
  const LayerNormGradients grads = LayerNormBackward(u, gamma, du);

  Write(args.dx, grads.dx);
  Write(args.dgamma, grads.dgamma);
  Write(args.dbeta, grads.dbeta);
  Write(args.dg1, LinearWeightGradient(dgate, u.normalised, expand));
  Write(args.dg2, LinearWeightGradient(dvalue, u.normalised, expand));
  Write(args.dw2, LinearWeightGradient(dy, hidden, project));
}

}  // namespace megafold::cpu::ref
