#include "backends/cpu/ref/triangle_multiplication.h"

#include <utility>

#include "backends/cpu/ref/dense.h"
#include "backends/cpu/ref/layers.h"

namespace megafold::cpu::ref {
namespace {

using ops::TriangleDirection;

struct Shape {
  std::int64_t batch, length, channels, hidden;
  std::int64_t pairs() const { return batch * length * length; }
  LinearShape in() const { return {pairs(), channels, hidden}; }      // Wap, Wag, Wbp, Wbg
  LinearShape out() const { return {pairs(), hidden, channels}; }     // Wop
  LinearShape gate() const { return {pairs(), channels, channels}; }  // Wog
};

template <typename Args>
Shape ShapeOf(const Args& args) {
  return {args.x.size(0), args.x.size(1), args.x.size(3), args.params.wap.size(0)};
}

// Calls visit(t, a, b) with the offsets of T[i,j], A[i,k] or A[k,i], Bm[j,k] or Bm[k,j] for every
// product of the sum.
template <typename Visit>
void ForEachTriangle(const Shape& shape, TriangleDirection direction, Visit visit) {
  const auto at = [&](std::int64_t b, std::int64_t row, std::int64_t column, std::int64_t c) {
    return static_cast<std::size_t>(
        ((b * shape.length + row) * shape.length + column) * shape.hidden + c);
  };
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t i = 0; i < shape.length; ++i) {
      for (std::int64_t j = 0; j < shape.length; ++j) {
        for (std::int64_t k = 0; k < shape.length; ++k) {
          for (std::int64_t c = 0; c < shape.hidden; ++c) {
            if (direction == TriangleDirection::kOutgoing) {
              visit(at(b, i, j, c), at(b, i, k, c), at(b, j, k, c));
            } else {
              visit(at(b, i, j, c), at(b, k, i, c), at(b, k, j, c));
            }
          }
        }
      }
    }
  }
}

// mask * sigmoid(gate) * value, and what its backward needs.
struct GatedProjection {
  Dense gate, value, product;
};

GatedProjection Project(const Dense& z, const Dense& mask, const TensorView& wg,
                        const TensorView& wp, LinearShape shape) {
  GatedProjection result{Linear(z, Read(wg), shape), Linear(z, Read(wp), shape), {}};
  result.product.resize(result.gate.size());
  for (std::size_t i = 0; i < result.product.size(); ++i) {
    const double factor = mask[i / static_cast<std::size_t>(shape.outputs)];
    result.product[i] = factor * Sigmoid(result.gate[i]) * result.value[i];
  }
  return result;
}

// Adds the projection's share to dz and writes the gradients of its weights.
void ProjectBackward(const GatedProjection& forward, const Dense& dproduct, const Dense& z,
                     const Dense& mask, const TensorView& wg, const TensorView& wp,
                     const TensorView& dwg, const TensorView& dwp, LinearShape shape, Dense& dz) {
  Dense dgate(dproduct.size());
  Dense dvalue(dproduct.size());
  for (std::size_t i = 0; i < dproduct.size(); ++i) {
    const double factor = mask[i / static_cast<std::size_t>(shape.outputs)];
    const double s = Sigmoid(forward.gate[i]);
    dvalue[i] = dproduct[i] * factor * s;
    dgate[i] = dproduct[i] * factor * forward.value[i] * s * (1 - s);
  }
  Accumulate(dz, LinearInputGradient(dgate, Read(wg), shape));
  Accumulate(dz, LinearInputGradient(dvalue, Read(wp), shape));
  Write(dwg, LinearWeightGradient(dgate, z, shape));
  Write(dwp, LinearWeightGradient(dvalue, z, shape));
}

template <typename Args>
LayerNormResult NormaliseInput(const Args& args, const Shape& shape) {
  return LayerNorm(Read(args.x), ReadOr(args.params.gamma_in, shape.channels, 1),
                   ReadOr(args.params.beta_in, shape.channels, 0), args.eps);
}

template <typename Args>
LayerNormResult NormaliseTriangle(const Args& args, const Dense& triangle, const Shape& shape) {
  return LayerNorm(triangle, ReadOr(args.params.gamma_out, shape.hidden, 1),
                   ReadOr(args.params.beta_out, shape.hidden, 0), args.eps);
}

}  // namespace

void TriangleMultiplicationForward(const ops::TriangleMultiplicationForwardArgs& args, Workspace,
                                   Stream) {
  const Shape shape = ShapeOf(args);
  const ops::TriangleMultiplicationParams& params = args.params;
  const Dense mask = ReadOr(args.mask, shape.pairs(), 1);
  const Dense z = NormaliseInput(args, shape).normalised;
  const Dense a = Project(z, mask, params.wag, params.wap, shape.in()).product;
  const Dense b = Project(z, mask, params.wbg, params.wbp, shape.in()).product;
  Dense triangle(a.size());
  ForEachTriangle(shape, args.direction, [&](std::size_t t, std::size_t ia, std::size_t ib) {
    triangle[t] += a[ia] * b[ib];
  });
  const Dense gate = Linear(z, Read(params.wog), shape.gate());
  Dense y =
      Linear(NormaliseTriangle(args, triangle, shape).normalised, Read(params.wop), shape.out());
  for (std::size_t i = 0; i < y.size(); ++i) y[i] *= Sigmoid(gate[i]);
  Write(args.triangle, triangle);
  Write(args.y, y);
}

void TriangleMultiplicationBackward(const ops::TriangleMultiplicationBackwardArgs& args, Workspace,
                                    Stream) {
  const Shape shape = ShapeOf(args);
  const ops::TriangleMultiplicationParams& params = args.params;
  const ops::TriangleMultiplicationParams& grads = args.dparams;
  const Dense mask = ReadOr(args.mask, shape.pairs(), 1);
  const LayerNormResult input = NormaliseInput(args, shape);
  const Dense& z = input.normalised;
  const LayerNormResult middle = NormaliseTriangle(args, Read(args.triangle), shape);

  // Y = sigmoid(gate) * projected
  const Dense gate = Linear(z, Read(params.wog), shape.gate());
  const Dense projected = Linear(middle.normalised, Read(params.wop), shape.out());
  const Dense dy = Read(args.dy);
  Dense dgate(dy.size());
  Dense dprojected(dy.size());
  for (std::size_t i = 0; i < dy.size(); ++i) {
    const double s = Sigmoid(gate[i]);
    dprojected[i] = dy[i] * s;
    dgate[i] = dy[i] * projected[i] * s * (1 - s);
  }
  Dense dz = LinearInputGradient(dgate, Read(params.wog), shape.gate());
  const LayerNormGradients dmiddle =
      LayerNormBackward(middle, ReadOr(params.gamma_out, shape.hidden, 1),
                        LinearInputGradient(dprojected, Read(params.wop), shape.out()));
  const Dense& dtriangle = dmiddle.dx;

  // The product and the gated projections under it.
  const GatedProjection a = Project(z, mask, params.wag, params.wap, shape.in());
  const GatedProjection b = Project(z, mask, params.wbg, params.wbp, shape.in());
  Dense da(a.product.size());
  Dense db(b.product.size());
  ForEachTriangle(shape, args.direction, [&](std::size_t t, std::size_t ia, std::size_t ib) {
    da[ia] += dtriangle[t] * b.product[ib];
    db[ib] += dtriangle[t] * a.product[ia];
  });
  ProjectBackward(a, da, z, mask, params.wag, params.wap, grads.wag, grads.wap, shape.in(), dz);
  ProjectBackward(b, db, z, mask, params.wbg, params.wbp, grads.wbg, grads.wbp, shape.in(), dz);

  const LayerNormGradients dinput =
      LayerNormBackward(input, ReadOr(params.gamma_in, shape.channels, 1), dz);
  Write(args.dx, dinput.dx);
  Write(grads.gamma_in, dinput.dgamma);
  Write(grads.beta_in, dinput.dbeta);
  Write(grads.gamma_out, dmiddle.dgamma);
  Write(grads.beta_out, dmiddle.dbeta);
  Write(grads.wop, LinearWeightGradient(dprojected, middle.normalised, shape.out()));
  Write(grads.wog, LinearWeightGradient(dgate, z, shape.gate()));
}

}  // namespace megafold::cpu::ref
