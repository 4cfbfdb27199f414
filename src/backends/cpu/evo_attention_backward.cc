#include <algorithm>
#include <vector>

#include "backends/cpu/evo_attention.h"
#include "backends/cpu/evo_attention_pieces.h"
#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"

namespace megafold::cpu {
namespace {

using Args = ops::EvoAttentionBackwardArgs;
using Int = std::int64_t;

struct Item {
  Int group, chunk;
  Int begin, end;  // rows of the group
};

// Items are (group, chunk of its rows). Every chunk but the first of a group needs a plane of its
// own for dBias, so that there are no more than even work takes.
struct Plan {
  AttentionDims dims;
  Slabs chunks;

  explicit Plan(const Args& args)
      : dims(AttentionDims::Of(args)),
        chunks(dims.group_rows, 1, MostChunks(dims, args.dbias.defined())) {}

  Item At(Int item) const {
    const Int chunk = item % chunks.count;
    return {item / chunks.count, chunk, chunks.Begin(chunk), chunks.End(chunk)};
  }
  Int items() const { return dims.groups * chunks.count; }
  int workers() const { return static_cast<int>(std::clamp<Int>(items(), 1, NumThreads())); }

 private:
  static int MostChunks(const AttentionDims& dims, bool sums_bias) {
    const Int threads = NumThreads();
    const Int groups = std::max<Int>(dims.groups, 1);
    const auto even = [&](Int items) {
      return items >= 4 * threads || (sums_bias && items % threads == 0);
    };
    int chunks = 1;
    while (!even(groups * chunks)) ++chunks;
    return chunks;
  }
};

struct Scratch {
  BiasPlane bias;
  MaskRow mask;
  Ahead ahead;
  Block k, dk, dv, k_transposed, v_transposed;  // all of the row's keys
  Block v;                                      // one tile of them
  Block q, out, dout, dq, scores, dp;           // one tile of queries
  float *delta, *scale;

  Scratch(const Args& args, const AttentionDims& d, Arena& arena)
      : bias(args.bias, d.queries, arena),
        mask(args.mask, d.keys, arena),
        k(arena.NewBlock(d.keys, d.dim)),
        dk(arena.NewBlock(d.keys, d.dim)),
        dv(arena.NewBlock(d.keys, d.dim)),
        k_transposed(arena.NewBlock(d.dim, d.keys)),
        v_transposed(arena.NewBlock(d.dim, d.keys)),
        v(arena.NewBlock(d.key_tile(), d.dim)),
        q(arena.NewBlock(d.query_tile(), d.dim)),
        out(arena.NewBlock(d.query_tile(), d.dim)),
        dout(arena.NewBlock(d.query_tile(), d.dim)),
        dq(arena.NewBlock(d.query_tile(), d.dim)),
        scores(arena.NewBlock(d.query_tile(), d.key_tile())),
        dp(arena.NewBlock(d.query_tile(), d.key_tile())),
        delta(arena.Floats(kQueryTile)),
        scale(arena.Floats(kQueryTile)) {}
};

// The dBias planes of all items: chunk 0 of a group sums in the result itself.
class BiasGradient {
 public:
  BiasGradient(const Args& args, const Plan& plan, Arena& arena)
      : wanted_(args.dbias.defined()),
        plane_(plan.dims.plane()),
        groups_(plan.dims.groups),
        chunks_(plan.chunks.count) {
    if (!wanted_) return;
    result_ = args.dbias.ptr<float>();
    partial_ = arena.Floats((chunks_ - 1) * groups_ * plane_);
  }

  // Null when the gradient is not wanted.
  float* Of(Int group, Int chunk) const {
    if (!wanted_) return nullptr;
    return chunk == 0 ? result_ + group * plane_
                      : partial_ + ((chunk - 1) * groups_ + group) * plane_;
  }
  void AddUp() const {
    if (!wanted_ || chunks_ == 1) return;
    const Slabs parts(groups_ * plane_, kColumnPadding, 4 * NumThreads());
    ParallelFor(parts.count, [&](Int part) {
      const Int begin = parts.Begin(part);
      const Int end = parts.End(part);
      for (Int chunk = 1; chunk < chunks_; ++chunk) {
        const float* from = partial_ + (chunk - 1) * groups_ * plane_;
        for (Int n = begin; n < end; ++n) result_[n] += from[n];
      }
    });
  }

 private:
  bool wanted_;
  Int plane_, groups_, chunks_;
  float* result_ = nullptr;
  float* partial_ = nullptr;
};

void Clear(Block block) { std::fill_n(block.data, block.rows * block.stride, 0.0F); }

void LoadRow(const Args& args, const AttentionDims& dims, const Scratch& s, const HeadRow& row) {
  s.mask.Load(row);
  LoadRows(row.Of(args.k, 0), s.k);
  Transpose(s.k.data, s.k.stride, dims.keys, dims.dim, s.k_transposed.data, s.k_transposed.stride);
  ForEachTile(0, dims.keys, kKeyTile, [&](Int first, Int count) {
    LoadRows(row.Of(args.v, first), First(s.v, count));
    Transpose(s.v.data, s.v.stride, count, dims.dim, s.v_transposed.data + first,
              s.v_transposed.stride);
  });
  Clear(s.dk);
  Clear(s.dv);
}

// sum += left^T right over the rows of a tile of queries; sum has a row per key.
void AddTransposed(Block left, Block right, Block sum) {
  Gemm({left.columns, right.columns, left.rows}, Transposed(left.data, left.stride),
       Rows(right.data, right.stride), sum.data, sum.stride, sum.data, sum.stride);
}

struct Tile {
  Int query, key;
  Block q, dout, dq;
  float* dbias;  // the item's plane
  bool accumulate;
};

void KeyTile(const Args& args, const AttentionDims& dims, Scratch& s, const HeadRow& row,
             const Tile& tile, Int keys) {
  const Block scores = Corner(s.scores, tile.q.rows, keys);
  const Block dp = Corner(s.dp, tile.q.rows, keys);
  const ScoreTerms terms =
      ScoreTile(tile.q, s.k_transposed, tile.key,
                s.bias.Terms(tile.query, tile.key, s.mask.From(tile.key)), scores, s.ahead);
  float* dbias = tile.dbias == nullptr ? nullptr : tile.dbias + tile.query * dims.keys + tile.key;
  ScoreTile(tile.dout, s.v_transposed, tile.key, {}, dp, s.ahead, {dbias, dims.keys});
  SoftmaxBackwardRows(
      scores, dp, terms,
      {row.Statistic(args.lse) + tile.query, s.delta, dbias, dims.keys, tile.accumulate});
  if (args.dv.defined()) AddTransposed(scores, tile.dout, RowRange(s.dv, tile.key, keys));
  if (args.dk.defined()) AddTransposed(dp, tile.q, RowRange(s.dk, tile.key, keys));
  if (args.dq.defined()) {
    const Block k = RowRange(s.k, tile.key, keys);
    Gemm({dp.rows, dims.dim, keys}, RowMajor(dp.data, dp.stride), Rows(k.data, k.stride),
         tile.dq.data, tile.dq.stride, tile.dq.data, tile.dq.stride);
  }
}

void QueryTile(const Args& args, const AttentionDims& dims, Scratch& s, const HeadRow& row,
               Tile tile, Int count) {
  tile.q = First(s.q, count);
  tile.dout = First(s.dout, count);
  tile.dq = First(s.dq, count);
  LoadRows(row.Of(args.q, tile.query), tile.q);
  ScaleRows(tile.q, s.scale);
  LoadRows(row.Of(args.dout, tile.query), tile.dout);
  LoadRows(row.Of(args.out, tile.query), First(s.out, count));
  DotRows(tile.dout, First(s.out, count), s.delta);
  Clear(tile.dq);
  ForEachTile(0, dims.keys, kKeyTile, [&](Int first, Int keys) {
    tile.key = first;
    KeyTile(args, dims, s, row, tile, keys);
  });
  if (!args.dq.defined()) return;
  ScaleRows(tile.dq, s.scale);
  StoreRows(tile.dq, row.Of(args.dq, tile.query));
}

// What row `r` of an item writes, and what comes after it: the next row, or the first of the next
// item of the run.
void LookAhead(const Args& args, const Plan& plan, const Item& here, Int r, const Item* next,
               Ahead& ahead) {
  const AttentionDims& dims = plan.dims;
  const HeadRow present(dims, here.group, r);
  ahead.Clear();
  if (args.dq.defined()) ahead.Add(present.Of(args.dq, 0), dims.queries, dims.dim, true);
  if (args.dk.defined()) ahead.Add(present.Of(args.dk, 0), dims.keys, dims.dim, true);
  if (args.dv.defined()) ahead.Add(present.Of(args.dv, 0), dims.keys, dims.dim, true);
  ahead.Start(2 * StepsAhead(dims, dims.queries));
  const bool same = r + 1 < here.end;
  if (!same && (next == nullptr || next->begin == next->end)) return;
  const HeadRow row(dims, same ? here.group : next->group, same ? r + 1 : next->begin);
  for (const TensorView* view : {&args.k, &args.v})
    ahead.Add(row.Of(*view, 0), dims.keys, dims.dim);
  for (const TensorView* view : {&args.q, &args.dout, &args.out}) {
    ahead.Add(row.Of(*view, 0), dims.queries, dims.dim);
  }
  ahead.Start(2 * StepsAhead(dims, dims.queries));
}

void RunItem(const Args& args, const Plan& plan, const BiasGradient& gradient, Scratch& s,
             const Item& item, const Item* next) {
  const AttentionDims& dims = plan.dims;
  float* dbias = gradient.Of(item.group, item.chunk);
  if (dbias != nullptr && item.begin == item.end) std::fill_n(dbias, dims.plane(), 0.0F);
  s.bias.Load(item.group, 0, dims.queries);
  for (Int r = item.begin; r < item.end; ++r) {
    const HeadRow row(dims, item.group, r);
    LookAhead(args, plan, item, r, next, s.ahead);
    LoadRow(args, dims, s, row);
    ForEachTile(0, dims.queries, kQueryTile, [&](Int first, Int count) {
      QueryTile(args, dims, s, row, {first, 0, {}, {}, {}, dbias, r > item.begin}, count);
    });
    if (args.dk.defined()) StoreRows(s.dk, row.Of(args.dk, 0));
    if (args.dv.defined()) StoreRows(s.dv, row.Of(args.dv, 0));
  }
}

std::vector<Scratch> MakeScratch(const Args& args, const Plan& plan, Arena& arena) {
  std::vector<Scratch> scratch;
  for (int w = 0; w < plan.workers(); ++w) scratch.emplace_back(args, plan.dims, arena);
  return scratch;
}

std::size_t BackwardWorkspace(const Args& args) {
  Arena arena(nullptr);
  const Plan plan(args);
  BiasGradient(args, plan, arena);
  MakeScratch(args, plan, arena);
  return arena.used();
}

void Backward(const Args& args, Workspace workspace, Stream) {
  const Plan plan(args);
  Arena arena(workspace.data);
  const BiasGradient gradient(args, plan, arena);
  std::vector<Scratch> scratch = MakeScratch(args, plan, arena);
  for (Scratch& s : scratch) std::fill_n(s.scale, kQueryTile, args.scale);
  ParallelRuns(plan.workers(), plan.items(), [&](int worker, Int begin, Int end) {
    for (Int i = begin; i < end; ++i) {
      const Item next = plan.At(i + 1 < end ? i + 1 : i);
      RunItem(args, plan, gradient, scratch[static_cast<std::size_t>(worker)], plan.At(i),
              i + 1 < end ? &next : nullptr);
    }
  });
  gradient.AddUp();
}

}  // namespace

Kernel<Args> EvoAttentionBackwardKernel() {
  return {&SupportsAttention<Args>, &BackwardWorkspace, &Backward};
}

}  // namespace megafold::cpu
