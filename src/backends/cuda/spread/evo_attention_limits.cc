#include "backends/cuda/spread/evo_attention_limits.h"

#include <cstdint>
#include <initializer_list>
#include <string>

#include "backends/cuda/attention/instances.h"
#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/cuda/spread/evo_attention_instances.h"
#include "backends/cuda/spread/evo_attention_plan.h"
#include "backends/cuda/tiles/evo_attention.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

constexpr std::int64_t kMaxGridPlaces = 65'535;  // of a grid's second and third dimension
constexpr std::int64_t kMaxBiasRows = 2;         // of a bias that serves few rows
constexpr std::int64_t kMaxWindows = 256;        // rows and heads of windows that share a bias

// Most scores of a problem, and what is said of one with more.
struct ScoreLimit {
  std::int64_t scores;
  const char* of;
};

ScoreLimit MaxScores(const AttentionProblem& p) {
  if (p.bias.kind == TermKind::kNone) {  // the path for short keys has longer vectors of few keys
    return {p.keys <= 128 && p.dim > 32 ? 1 << 19 : 2'500'000, " without a bias"};
  }
  const bool few_keys = p.keys <= kFewKeys;
  if (p.rows > kMaxBiasRows) {
    return {1 << (few_keys || !p.bias.aligned ? 19 : 20),
            " of a bias that serves more than 2 rows"};
  }
  if (few_keys) return {1 << 21, " of few keys"};
  if (SpreadHasForward(p.dim)) return {10'000'000, " of long vectors"};
  return {40'000'000, ""};
}

Support SupportsOperands(const TensorView& q, const TensorView& k, const TensorView& bias,
                         std::initializer_list<const TensorView*> vectors) {
  const Support sizes = SupportsAttention(q, k, bias);
  if (!sizes) return sizes;
  if (FindInstance(kSpreads, q) == nullptr) {
    return Support::No(StrCat("no kernel for ", Name(q.dtype), " with head dimension ", q.size(4)));
  }
  for (int dim = 0; dim < 4; ++dim) {
    if (q.size(dim) == 0 || k.size(dim) == 0) return Support::No("the problem is empty");
  }
  for (const TensorView* view : vectors) {
    if (view->defined() && !IsAligned(*view)) {
      return Support::No("the vectors of an operand do not start on 16 bytes");
    }
  }
  return Support::Yes();
}

Support SupportsGrid(const AttentionProblem& p) {
  if (p.heads > kMaxGridPlaces || p.groups * p.rows > kMaxGridPlaces) {
    return Support::No(StrCat("more than ", kMaxGridPlaces, " heads or rows"));
  }
  return Support::Yes();
}

Support SupportsSize(const AttentionProblem& p) {
  const double scores = static_cast<double>(p.groups * p.rows) * p.heads * p.queries * p.keys;
  const ScoreLimit limit = MaxScores(p);
  if (scores > static_cast<double>(limit.scores)) {
    return Support::No(StrCat("more than ", limit.scores, " scores", limit.of));
  }
  return Support::Yes();
}

constexpr const char* kNoFewWindows = "no few windows that share a bias";

// Few windows that share a bias: the path for short keys would walk over their rows.
bool AreFewWindows(const AttentionProblem& p) {
  return p.bias.kind != TermKind::kNone && p.rows > 1 && p.queries <= 32 && p.keys <= 128 &&
         p.groups * p.rows * p.heads <= kMaxWindows;
}

// Blocks of the forward, or what keeps it from running.
Support CountForwardBlocks(const TensorView& q, const AttentionProblem& problem,
                           std::int64_t& blocks) {
  const int device = q.device.index;
  if (FindInstance(kStrips, q) == nullptr) {
    const SpreadParams p = MakeForwardParams(problem, FindInstance(kSpreads, q)->dim, device);
    blocks = p.query_blocks * p.groups * p.rows * p.heads;
    return Support::Yes();
  }
  StripProblem p;
  const Support strips = MakeStripProblem(problem, p);
  if (!strips) return strips;
  if (problem.rows > kMaxBiasRows && problem.keys > kFewKeys && p.bias_kind != TermKind::kNone &&
      !p.bias_vectors) {
    return Support::No("a bias that serves more than 2 rows does not lie on vectors");
  }
  blocks = ForwardBlocks(p, ForwardTiles(p, device));
  return Support::Yes();
}

}  // namespace

template <bool kWindows>
Support SupportsSpread(const ops::EvoAttentionForwardArgs& args) {
  const Support operands =
      SupportsOperands(args.q, args.k, args.bias, {&args.q, &args.k, &args.v, &args.out});
  if (!operands) return operands;
  const AttentionProblem problem = MakeAttentionProblem(args);
  const Support grid = SupportsGrid(problem);
  if (!grid) return grid;
  const Support size = SupportsSize(problem);
  if (!size) return size;
  if (kWindows && !AreFewWindows(problem)) return Support::No(kNoFewWindows);
  std::int64_t blocks = 0;
  const Support runs = CountForwardBlocks(args.q, problem, blocks);
  if (!runs) return runs;
  if (Fills(blocks, args.q.device.index) > 1) {
    return Support::No("more queries than one block for each multiprocessor holds");
  }
  return Support::Yes();
}

template <bool kWindows>
Support SupportsSpread(const ops::EvoAttentionBackwardArgs& args) {
  const Support operands = SupportsOperands(
      args.q, args.k, args.bias,
      {&args.q, &args.k, &args.v, &args.out, &args.dout, &args.dq, &args.dk, &args.dv});
  if (!operands) return operands;
  const AttentionProblem problem = MakeAttentionProblem(args);
  if (kWindows && !(args.dbias.defined() && AreFewWindows(problem))) {
    return Support::No(kNoFewWindows);
  }
  const Support grid = SupportsGrid(problem);
  if (!grid || PlanTileBackward(args).instance != nullptr) return grid;
  if (problem.bias.kind == TermKind::kNone && problem.keys <= kFewKeys &&
      !SpreadHasForward(problem.dim)) {
    return Support::No(StrCat("no bias and at most ", kFewKeys, " keys"));
  }
  return SupportsSize(problem);
}

template Support SupportsSpread<false>(const ops::EvoAttentionForwardArgs&);
template Support SupportsSpread<true>(const ops::EvoAttentionForwardArgs&);
template Support SupportsSpread<false>(const ops::EvoAttentionBackwardArgs&);
template Support SupportsSpread<true>(const ops::EvoAttentionBackwardArgs&);

}  // namespace megafold::cuda
