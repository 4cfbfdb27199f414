#include <algorithm>
#include <limits>
#include <vector>

#include "backends/cpu/evo_attention.h"
#include "backends/cpu/evo_attention_pieces.h"
#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"

namespace megafold::cpu {
namespace {

using Args = ops::EvoAttentionForwardArgs;
using Int = std::int64_t;

struct Item {
  Int group, begin, end;  // rows of the group
  Int first_query, last_query;
};

// Items are (group, chunk of its rows, slab of queries); nothing is summed over them, so that their
// number is free: enough for even work, as few as possible for bias planes and K and V that are
// read once.
struct Plan {
  AttentionDims dims;
  Slabs chunks, slabs;

  explicit Plan(const Args& args)
      : dims(AttentionDims::Of(args)),
        chunks(dims.group_rows, 1, Share(4, dims.groups)),
        slabs(dims.queries, kQueryTile, Share(2, dims.groups * chunks.count)) {}

  Item At(Int item) const {
    const int slab = static_cast<int>(item % slabs.count);
    const Int chunk = item / slabs.count % chunks.count;
    return {item / slabs.count / chunks.count, chunks.Begin(chunk), chunks.End(chunk),
            slabs.Begin(slab), slabs.End(slab)};
  }
  Int items() const { return dims.groups * chunks.count * slabs.count; }
  int workers() const { return static_cast<int>(std::clamp<Int>(items(), 1, NumThreads())); }
  // Queries of the longest slab.
  Int slab_queries() const {
    Int most = 0;
    for (int slab = 0; slab < slabs.count; ++slab) {
      most = std::max(most, slabs.End(slab) - slabs.Begin(slab));
    }
    return most;
  }

 private:
  // Parts that each of `have` items is cut into for `items` of them per thread.
  static int Share(int items, Int have) {
    have = std::max<Int>(have, 1);
    return static_cast<int>((items * NumThreads() + have - 1) / have);
  }
};

struct Scratch {
  BiasPlane bias;
  MaskRow mask;
  Ahead ahead;
  Block k, k_transposed, v;  // one tile of K; all of the row's keys
  Block q, sum, scores;
  RunningSoftmax state;
  float *factor, *scale;

  Scratch(const Args& args, const Plan& plan, Arena& arena)
      : bias(args.bias, plan.slab_queries(), arena),
        mask(args.mask, plan.dims.keys, arena),
        k(arena.NewBlock(plan.dims.key_tile(), plan.dims.dim)),
        k_transposed(arena.NewBlock(plan.dims.dim, plan.dims.keys)),
        v(arena.NewBlock(plan.dims.keys, plan.dims.dim)),
        q(arena.NewBlock(plan.dims.query_tile(), plan.dims.dim)),
        sum(arena.NewBlock(plan.dims.query_tile(), plan.dims.dim)),
        scores(arena.NewBlock(plan.dims.query_tile(), plan.dims.key_tile())),
        state{arena.Floats(kQueryTile), arena.Floats(kQueryTile)},
        factor(arena.Floats(kQueryTile)),
        scale(arena.Floats(kQueryTile)) {}
};

void LoadRow(const Args& args, const AttentionDims& dims, const Scratch& s, const HeadRow& row) {
  s.mask.Load(row);
  LoadRows(row.Of(args.v, 0), s.v);
  ForEachTile(0, dims.keys, kKeyTile, [&](Int first, Int count) {
    LoadRows(row.Of(args.k, first), First(s.k, count));
    Transpose(s.k.data, s.k.stride, count, dims.dim, s.k_transposed.data + first,
              s.k_transposed.stride);
  });
}

void QueryTile(const Args& args, const AttentionDims& dims, Scratch& s, const HeadRow& row,
               Int first_query, Int count) {
  const Block q = First(s.q, count);
  const Block sum = First(s.sum, count);
  LoadRows(row.Of(args.q, first_query), q);
  ScaleRows(q, s.scale);
  std::fill_n(sum.data, count * sum.stride, 0.0F);
  std::fill_n(s.state.largest, count, -std::numeric_limits<float>::infinity());
  std::fill_n(s.state.sum, count, 0.0F);
  ForEachTile(0, dims.keys, kKeyTile, [&](Int first, Int keys) {
    const Block scores = Corner(s.scores, count, keys);
    const ScoreTerms terms = s.bias.Terms(first_query, first, s.mask.From(first));
    OnlineSoftmaxRows(scores, ScoreTile(q, s.k_transposed, first, terms, scores, s.ahead), s.state,
                      s.factor);
    if (first > 0) ScaleRows(sum, s.factor);
    const Block v = RowRange(s.v, first, keys);
    Gemm({count, dims.dim, keys}, RowMajor(scores.data, scores.stride), Rows(v.data, v.stride),
         sum.data, sum.stride, sum.data, sum.stride);
  });
  FinishSoftmax(s.state, count, s.factor, row.Statistic(args.lse) + first_query);
  ScaleRows(sum, s.factor);
  StoreRows(sum, row.Of(args.out, first_query));
}

// What row `r` of an item writes, and what comes after it: the next row, or the first of the next
// item of the run.
void LookAhead(const Args& args, const Plan& plan, const Item& here, Int r, const Item* next,
               Ahead& ahead) {
  const HeadRow present(plan.dims, here.group, r);
  ahead.Clear();
  ahead.Add(present.Of(args.out, here.first_query), here.last_query - here.first_query,
            plan.dims.dim, true);
  ahead.Start(StepsAhead(plan.dims, here.last_query - here.first_query));
  const bool same = r + 1 < here.end;
  if (!same && (next == nullptr || next->begin == next->end)) return;
  const Item& item = same ? here : *next;
  const HeadRow row(plan.dims, item.group, same ? r + 1 : item.begin);
  ahead.Add(row.Of(args.v, 0), plan.dims.keys, plan.dims.dim);
  ahead.Add(row.Of(args.k, 0), plan.dims.keys, plan.dims.dim);
  ahead.Add(row.Of(args.q, item.first_query), item.last_query - item.first_query, plan.dims.dim);
  ahead.Start(StepsAhead(plan.dims, here.last_query - here.first_query));
}

void RunItem(const Args& args, const Plan& plan, Scratch& s, const Item& item, const Item* next) {
  s.bias.Load(item.group, item.first_query, item.last_query - item.first_query);
  for (Int r = item.begin; r < item.end; ++r) {
    const HeadRow row(plan.dims, item.group, r);
    LookAhead(args, plan, item, r, next, s.ahead);
    LoadRow(args, plan.dims, s, row);
    ForEachTile(item.first_query, item.last_query, kQueryTile,
                [&](Int first, Int count) { QueryTile(args, plan.dims, s, row, first, count); });
  }
}

std::vector<Scratch> MakeScratch(const Args& args, const Plan& plan, Arena& arena) {
  std::vector<Scratch> scratch;
  for (int w = 0; w < plan.workers(); ++w) scratch.emplace_back(args, plan, arena);
  return scratch;
}

std::size_t ForwardWorkspace(const Args& args) {
  Arena arena(nullptr);
  MakeScratch(args, Plan(args), arena);
  return arena.used();
}

void Forward(const Args& args, Workspace workspace, Stream) {
  const Plan plan(args);
  Arena arena(workspace.data);
  std::vector<Scratch> scratch = MakeScratch(args, plan, arena);
  for (Scratch& s : scratch) std::fill_n(s.scale, kQueryTile, args.scale);
  ParallelRuns(plan.workers(), plan.items(), [&](int worker, Int begin, Int end) {
    for (Int i = begin; i < end; ++i) {
      const Item next = plan.At(i + 1 < end ? i + 1 : i);
      RunItem(args, plan, scratch[static_cast<std::size_t>(worker)], plan.At(i),
              i + 1 < end ? &next : nullptr);
    }
  });
}

}  // namespace

Kernel<Args> EvoAttentionForwardKernel() {
  return {&SupportsAttention<Args>, &ForwardWorkspace, &Forward};
}

}  // namespace megafold::cpu
