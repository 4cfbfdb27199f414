#include "megafold/ops/evo_attention.h"

#include "ops/checks.h"
#include "ops/dispatch.h"

namespace megafold::ops {
namespace {

constexpr const char* kOp = "evo_attention";
using Impl = EvoAttentionImplementation;

// Size `dim` of an operand that may be shared over `whole`: 1 where it is, else what is expected.
std::int64_t SharedSize(const TensorView& view, int dim, std::int64_t whole) {
  return view.rank > dim && view.size(dim) == 1 ? 1 : whole;
}

// What forward and backward read alike. Returns the checks bound to q's device and type.
template <typename Args>
Checks CheckInputs(const Args& args) {
  const TensorView& q = args.q;
  Checks checks(kOp, "q", q, 5);
  const std::int64_t batch = q.size(0), rows = q.size(1), queries = q.size(2), heads = q.size(3),
                     dim = q.size(4);
  checks.That(dim > 0, "q has shape ", q, ", expected a head dimension of at least 1");
  checks.That(args.k.rank == 5, "k has shape ", args.k, ", expected [", batch, ", ", rows,
              ", keys, ", heads, ", ", dim, "]");
  const std::int64_t keys = args.k.size(2);
  checks.Operand("q", q, {batch, rows, queries, heads, dim});
  checks.Operand("k", args.k, {batch, rows, keys, heads, dim});
  checks.Operand("v", args.v, {batch, rows, keys, heads, dim});
  checks.OptionalMask(
      "mask", args.mask,
      {SharedSize(args.mask, 0, batch), SharedSize(args.mask, 1, rows), 1, 1, keys});
  checks.OptionalBias("bias", args.bias,
                      {SharedSize(args.bias, 0, batch), 1, heads, queries, keys});
  checks.Operand("out", args.out, {batch, rows, queries, heads, dim});
  checks.Statistic("lse", args.lse, {batch, rows, heads, queries});
  return checks;
}

void Check(const EvoAttentionForwardArgs& args) { CheckInputs(args); }

void Check(const EvoAttentionBackwardArgs& args) {
  const TensorView& q = args.q;
  const TensorView& bias = args.bias;
  const Checks checks = CheckInputs(args);
  checks.Operand("dout", args.dout, {q.size(0), q.size(1), q.size(2), q.size(3), q.size(4)});
  checks.OptionalGradient("dq", args.dq, "q", q);
  checks.OptionalGradient("dk", args.dk, "k", args.k);
  checks.OptionalGradient("dv", args.dv, "v", args.v);
  if (!args.dbias.defined()) return;
  checks.That(bias.defined(), "dbias is asked for, but bias is absent");
  checks.Statistic("dbias", args.dbias, {bias.size(0), 1, q.size(3), q.size(2), args.k.size(2)});
}

// A query or key length, the rows and the batch vary with every entry and are rounded; the rest is
// a model's. A mask of any kind is small beside the scores.
template <typename Args>
ProblemClass Describe(Direction direction, const Args& args) {
  const TensorView& q = args.q;
  ProblemClass problem(kOp, direction, q.dtype);
  problem.Size("batch", q.size(0)).Size("rows", q.size(1)).Size("queries", q.size(2));
  problem.Size("keys", args.k.size(2)).Exact("heads", q.size(3)).Exact("dim", q.size(4));
  problem.Type("bias", args.bias);
  if (args.bias.defined()) problem.Size("biases", args.bias.size(0));
  return problem.Word("mask", args.mask.defined() ? "yes" : "no");
}

ProblemClass ForwardProblem(const EvoAttentionForwardArgs& args) {
  return Describe(Direction::kForward, args);
}

ProblemClass BackwardProblem(const EvoAttentionBackwardArgs& args) {
  return Describe(Direction::kBackward, args).Word("dbias", args.dbias.defined() ? "yes" : "no");
}

constexpr Route<Impl, EvoAttentionForwardArgs> kForward{kOp, &Impl::forward, ForwardProblem};
constexpr Route<Impl, EvoAttentionBackwardArgs> kBackward{kOp, &Impl::backward, BackwardProblem};

}  // namespace

std::size_t EvoAttentionForwardWorkspace(const EvoAttentionForwardArgs& args) {
  Check(args);
  return Select(kForward, args, args.q.device).workspace(args);
}

std::size_t EvoAttentionBackwardWorkspace(const EvoAttentionBackwardArgs& args) {
  Check(args);
  return Select(kBackward, args, args.q.device).workspace(args);
}

void EvoAttentionForward(const EvoAttentionForwardArgs& args, Workspace workspace, Stream stream) {
  Check(args);
  Launch(kOp, Select(kForward, args, args.q.device), args, workspace, stream);
}

void EvoAttentionBackward(const EvoAttentionBackwardArgs& args, Workspace workspace,
                          Stream stream) {
  Check(args);
  Launch(kOp, Select(kBackward, args, args.q.device), args, workspace, stream);
}

TuningCandidates Candidates(const EvoAttentionForwardArgs& args) {
  Check(args);
  return FindCandidates(kForward, args, args.q.device);
}

TuningCandidates Candidates(const EvoAttentionBackwardArgs& args) {
  Check(args);
  return FindCandidates(kBackward, args, args.q.device);
}

}  // namespace megafold::ops
