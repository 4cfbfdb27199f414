#include "backends/cpu/ref/evo_attention.h"

#include <cmath>
#include <limits>

#include "backends/cpu/ref/dense.h"

namespace megafold::cpu::ref {
namespace {

using Int = std::int64_t;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The view with a dimension of size 1 repeated `size` times.
TensorView Repeat(TensorView view, int dim, Int size) {
  if (!view.defined() || view.size(dim) == size) return view;
  view.sizes[static_cast<std::size_t>(dim)] = size;
  view.strides[static_cast<std::size_t>(dim)] = 0;
  return view;
}

// What is added to the scores: [B, S, Nk] for the mask, 0 or -inf where it is bool.
Dense MaskTerms(const TensorView& mask, Int batch, Int rows, Int keys) {
  Dense terms = ReadOr(Repeat(Repeat(mask, 0, batch), 1, rows), batch * rows * keys, 0);
  if (mask.dtype != DType::kBool || !mask.defined()) return terms;
  for (double& term : terms) term = term != 0 ? 0 : -kInfinity;
  return terms;
}

// The operands as dense arrays, and where a query, a key or a pair of both lies in them.
struct Problem {
  Int batch, rows, queries, keys, heads, dim, bias_batch;
  double scale;
  Dense q, k, v, mask, bias;

  template <typename Args>
  explicit Problem(const Args& args)
      : batch(args.q.size(0)),
        rows(args.q.size(1)),
        queries(args.q.size(2)),
        keys(args.k.size(2)),
        heads(args.q.size(3)),
        dim(args.q.size(4)),
        bias_batch(args.bias.defined() ? args.bias.size(0) : 1),
        scale(args.scale),
        q(Read(args.q)),
        k(Read(args.k)),
        v(Read(args.v)),
        mask(MaskTerms(args.mask, batch, rows, keys)),
        bias(ReadOr(args.bias, bias_batch * heads * queries * keys, 0)) {}

  // Calls visit(b, s, h, i) for every query.
  template <typename Visit>
  void ForEachQuery(Visit visit) const {
    for (Int b = 0; b < batch; ++b) {
      for (Int s = 0; s < rows; ++s) {
        for (Int h = 0; h < heads; ++h) {
          for (Int i = 0; i < queries; ++i) visit(b, s, h, i);
        }
      }
    }
  }

  std::size_t Query(Int b, Int s, Int h, Int i) const {
    return static_cast<std::size_t>((((b * rows + s) * queries + i) * heads + h) * dim);
  }
  std::size_t Key(Int b, Int s, Int h, Int j) const {
    return static_cast<std::size_t>((((b * rows + s) * keys + j) * heads + h) * dim);
  }
  std::size_t Statistic(Int b, Int s, Int h, Int i) const {
    return static_cast<std::size_t>(((b * rows + s) * heads + h) * queries + i);
  }
  std::size_t Pair(Int b, Int h, Int i, Int j) const {
    const Int shared = bias_batch == 1 ? 0 : b;
    return static_cast<std::size_t>(((shared * heads + h) * queries + i) * keys + j);
  }

  double Dot(const Dense& a, std::size_t at, const Dense& c, std::size_t to) const {
    double sum = 0;
    for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d) sum += a[at + d] * c[to + d];
    return sum;
  }
  // a[at + d] += factor * c[from + d]
  void AddScaled(Dense& a, std::size_t at, double factor, const Dense& c, std::size_t from) const {
    for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d)
      a[at + d] += factor * c[from + d];
  }

  double Score(Int b, Int s, Int h, Int i, Int j) const {
    return scale * Dot(q, Query(b, s, h, i), k, Key(b, s, h, j)) + bias[Pair(b, h, i, j)] +
           mask[static_cast<std::size_t>((b * rows + s) * keys + j)];
  }
};

// log(sum(exp(scores))), NaN where a score is; +inf where nothing is left to attend to, so that
// exp(score - lse) is zero for every key.
double LogSumExp(const Dense& scores) {
  double largest = -kInfinity;
  for (const double score : scores) {
    if (std::isnan(score)) return score;
    largest = std::max(largest, score);
  }
  if (largest == -kInfinity) return kInfinity;
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - largest);
  return largest + std::log(sum);
}

}  // namespace

void EvoAttentionForward(const ops::EvoAttentionForwardArgs& args, Workspace, Stream) {
  const Problem p(args);
  Dense out(p.q.size(), 0);
  Dense lse(static_cast<std::size_t>(args.lse.numel()));
  Dense scores(static_cast<std::size_t>(p.keys));
  p.ForEachQuery([&](Int b, Int s, Int h, Int i) {
    for (Int j = 0; j < p.keys; ++j) {
      scores[static_cast<std::size_t>(j)] = p.Score(b, s, h, i, j);
    }
    const double total = lse[p.Statistic(b, s, h, i)] = LogSumExp(scores);
    for (Int j = 0; j < p.keys; ++j) {
      const double weight = std::exp(scores[static_cast<std::size_t>(j)] - total);
      p.AddScaled(out, p.Query(b, s, h, i), weight, p.v, p.Key(b, s, h, j));
    }
  });
  Write(args.out, out);
  Write(args.lse, lse);
}

// With P the softmax: dV = P^T dO, dP = dO V^T, dS = P (dP - sum_d dO O), and dS is the gradient of
// the scores.
void EvoAttentionBackward(const ops::EvoAttentionBackwardArgs& args, Workspace, Stream) {
  const Problem p(args);
  const Dense out = Read(args.out);
  const Dense lse = Read(args.lse);
  const Dense dout = Read(args.dout);
  Dense dq(p.q.size(), 0);
  Dense dk(p.k.size(), 0);
  Dense dv(p.v.size(), 0);
  Dense dbias(p.bias.size(), 0);
  p.ForEachQuery([&](Int b, Int s, Int h, Int i) {
    const std::size_t query = p.Query(b, s, h, i);
    const double delta = p.Dot(dout, query, out, query);
    for (Int j = 0; j < p.keys; ++j) {
      const std::size_t key = p.Key(b, s, h, j);
      const double weight = std::exp(p.Score(b, s, h, i, j) - lse[p.Statistic(b, s, h, i)]);
      const double dscore = weight * (p.Dot(dout, query, p.v, key) - delta);
      p.AddScaled(dv, key, weight, dout, query);
      p.AddScaled(dq, query, p.scale * dscore, p.k, key);
      p.AddScaled(dk, key, p.scale * dscore, p.q, query);
      dbias[p.Pair(b, h, i, j)] += dscore;
    }
  });
  Write(args.dq, dq);
  Write(args.dk, dk);
  Write(args.dv, dv);
  Write(args.dbias, dbias);
}

}  // namespace megafold::cpu::ref
