#include "backends/cpu/transition_few_rows.h"

#include <algorithm>
#include <vector>

#include "backends/cpu/gates.h"
#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/partial_sum.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"

namespace megafold::cpu {
namespace {

using Args = ops::TransitionBackwardArgs;
using Int = std::int64_t;

constexpr Int kChunk = kPackedColumnStep;  // hidden features at a time
constexpr Int kBlock = 96;                 // rows at a time

struct Plan {
  Int rows, features, hidden;
  Slabs workers;     // of hidden features
  Slabs row_shares;  // where the workers' sums are added; no more than there are workers

  explicit Plan(const Args& args)
      : rows(args.x.size(0)),
        features(args.x.size(1)),
        hidden(args.g1.size(0)),
        workers(hidden, kChunk, NumThreads()),
        row_shares(rows, kRowStep, workers.count) {}

 private:
  static constexpr Int kRowStep = 24;
};

bool WantsInputGradient(const Args& args) {
  return args.dx.defined() || args.dgamma.defined() || args.dbeta.defined();
}

struct Worker {
  Block u, x, dy, gate, value, dhidden;      // a block of rows
  float *g1_packed, *g2_packed, *w2_packed;  // a chunk, for gate, value and dhidden
  Block g1, g2, w2;                          // the chunk as it lies or is loaded
  Block dg1, dg2, dw2;                       // a chunk's gradients
  Block du;                                  // all rows

  Worker(const Args& args, const Plan& plan, Arena& arena)
      : u(arena.NewBlock(kBlock, plan.features)),
        x(RoomFor(args.x, kBlock, plan.features, arena)),
        dy(RoomFor(args.dy, kBlock, plan.features, arena)),
        gate(arena.NewBlock(kBlock, kChunk)),
        value(arena.NewBlock(kBlock, kChunk)),
        dhidden(arena.NewBlock(kBlock, kChunk)),
        g1_packed(arena.Floats(PackedSize(plan.features, kChunk))),
        g2_packed(arena.Floats(PackedSize(plan.features, kChunk))),
        w2_packed(arena.Floats(PackedSize(plan.features, kChunk))),
        g1(RoomFor(args.g1, kChunk, plan.features, arena)),
        g2(RoomFor(args.g2, kChunk, plan.features, arena)),
        w2(RoomFor(args.w2, plan.features, kChunk, arena)),
        dg1(RoomFor(args.dg1, kChunk, plan.features, arena)),
        dg2(RoomFor(args.dg2, kChunk, plan.features, arena)),
        dw2(RoomFor(args.dw2, plan.features, kChunk, arena)),
        du(arena.NewBlock(WantsInputGradient(args) ? plan.rows : 0, plan.features)) {}
};

struct Scratch {
  float *gamma, *beta;
  PartialSum dgamma, dbeta;
  std::vector<Worker> workers;

  Scratch(const Args& args, const Plan& plan, Arena& arena)
      : gamma(arena.Floats(PadColumns(plan.features))),
        beta(arena.Floats(PadColumns(plan.features))),
        dgamma(arena, plan.row_shares.count, 1, plan.features, args.dgamma.defined()),
        dbeta(arena, plan.row_shares.count, 1, plan.features, args.dbeta.defined()) {
    for (int w = 0; w < plan.workers.count; ++w) workers.emplace_back(args, plan, arena);
  }
};

// c = a b, or c += a b.
void Multiply(GemmLhs a, GemmRhs b, Int depth, bool accumulate, Block c) {
  Gemm({c.rows, c.columns, depth}, a, b, accumulate ? c.data : nullptr, c.stride, c.data, c.stride);
}

// sum (+)= left^T right, over the rows of both.
void MultiplyTransposed(Block left, Block right, bool accumulate, Block sum) {
  Multiply(Transposed(left.data, left.stride), Rows(right.data, right.stride), left.rows,
           accumulate, sum);
}

// The worker's rooms cut to a chunk of `width` hidden features, its weights loaded and packed.
Worker LoadChunk(const Args& args, const Plan& plan, Worker w, Int first, Int width) {
  for (Block* block : {&w.g1, &w.g2, &w.dg1, &w.dg2}) block->rows = width;
  for (Block* block : {&w.gate, &w.value, &w.dhidden, &w.w2, &w.dw2}) block->columns = width;
  w.g1 = LoadPart(args.g1, first, 0, w.g1);
  w.g2 = LoadPart(args.g2, first, 0, w.g2);
  w.w2 = LoadPart(args.w2, 0, first, w.w2);
  PackMatrix(w.g1.data, 1, w.g1.stride, plan.features, width, w.g1_packed);
  PackMatrix(w.g2.data, 1, w.g2.stride, plan.features, width, w.g2_packed);
  PackMatrix(w.w2.data, w.w2.stride, 1, plan.features, width, w.w2_packed);
  return w;
}

// Gate, value and the hidden features' gradient of a block of rows, then the gradients of gate and
// value in their place and the hidden features in the gradient's.
void HiddenGradients(const Plan& plan, const Worker& w, Block u, Block dy) {
  const auto multiply = [&](Block left, const float* packed, Block product) {
    Multiply(RowMajor(left.data, left.stride), Packed(packed, plan.features), plan.features, false,
             product);
  };
  multiply(u, w.g1_packed, First(w.gate, u.rows));
  multiply(u, w.g2_packed, First(w.value, u.rows));
  multiply(dy, w.w2_packed, First(w.dhidden, u.rows));
  SwiGluBackward(First(w.gate, u.rows), First(w.value, u.rows), First(w.dhidden, u.rows));
}

// One chunk of hidden features of all rows.
void Chunk(const Args& args, const Plan& plan, const Scratch& scratch, const Worker& worker,
           Int first, bool first_of_worker) {
  const Int width = std::min(kChunk, plan.hidden - first);
  const Worker w = LoadChunk(args, plan, worker, first, width);
  const Block dg1 = PartOf(args.dg1, first, 0, w.dg1);
  const Block dg2 = PartOf(args.dg2, first, 0, w.dg2);
  const Block dw2 = PartOf(args.dw2, 0, first, w.dw2);
  for (Int row = 0; row < plan.rows; row += kBlock) {
    const Int rows = std::min(kBlock, plan.rows - row);
    const Block u = First(w.u, rows);
    NormaliseRows(LoadPart(args.x, row, 0, First(w.x, rows)), {scratch.gamma, scratch.beta, 0},
                  args.mean.ptr<float>() + row, args.rstd.ptr<float>() + row, u);
    const Block dy = LoadPart(args.dy, row, 0, First(w.dy, rows));
    const Block gate = First(w.gate, rows);
    const Block value = First(w.value, rows);
    HiddenGradients(plan, w, u, dy);
    if (args.dg1.defined()) MultiplyTransposed(gate, u, row > 0, dg1);
    if (args.dg2.defined()) MultiplyTransposed(value, u, row > 0, dg2);
    if (args.dw2.defined()) MultiplyTransposed(dy, First(w.dhidden, rows), row > 0, dw2);
    if (!WantsInputGradient(args)) continue;
    Block du = First(w.du, rows);
    du.data += row * du.stride;
    Multiply(RowMajor(gate.data, gate.stride), Rows(w.g1.data, w.g1.stride), width,
             !first_of_worker, du);
    Multiply(RowMajor(value.data, value.stride), Rows(w.g2.data, w.g2.stride), width, true, du);
  }
  if (args.dg1.defined()) StorePart(args.dg1, first, 0, w.dg1);
  if (args.dg2.defined()) StorePart(args.dg2, first, 0, w.dg2);
  if (args.dw2.defined()) StorePart(args.dw2, 0, first, w.dw2);
}

// The workers' sums of a share of the rows, and LayerNorm's backward of these.
void FinishRows(const Args& args, const Plan& plan, const Scratch& scratch, Int share) {
  scratch.dgamma.Clear(share);
  scratch.dbeta.Clear(share);
  const Worker& w = scratch.workers[static_cast<std::size_t>(share)];
  const Int end = plan.row_shares.End(share);
  for (Int row = plan.row_shares.Begin(share); row < end; row += kBlock) {
    const Int rows = std::min(kBlock, end - row);
    Block du = First(scratch.workers.front().du, rows);
    du.data += row * du.stride;
    for (std::size_t other = 1; other < scratch.workers.size(); ++other) {
      AddInto(du.data, scratch.workers[other].du.data + row * du.stride, rows * du.stride);
    }
    LayerNormBackwardRows(du, LoadPart(args.x, row, 0, First(w.x, rows)), scratch.gamma,
                          args.mean.ptr<float>() + row, args.rstd.ptr<float>() + row,
                          scratch.dgamma.Of(share).data, scratch.dbeta.Of(share).data);
    if (args.dx.defined()) StoreRows(du, RowsOf(args.dx, row));
  }
}

}  // namespace

bool HasFewRows(const Args& args) {
  return args.x.size(0) > 0 && args.x.size(0) <= args.g1.size(0);
}

std::size_t TransitionFewRowsWorkspace(const Args& args) {
  Arena arena(nullptr);
  Scratch(args, Plan(args), arena);
  return arena.used();
}

void TransitionFewRowsBackward(const Args& args, Workspace workspace) {
  Arena arena(workspace.data);
  const Plan plan(args);
  const Scratch scratch(args, plan, arena);
  LoadVector(args.gamma, plan.features, 1, scratch.gamma);
  LoadVector(args.beta, plan.features, 0, scratch.beta);
  ParallelFor(plan.workers.count, [&](Int worker) {
    const Int begin = plan.workers.Begin(worker);
    for (Int first = begin; first < plan.workers.End(worker); first += kChunk) {
      Chunk(args, plan, scratch, scratch.workers[static_cast<std::size_t>(worker)], first,
            first == begin);
    }
  });
  if (!WantsInputGradient(args)) return;
  ParallelFor(plan.row_shares.count, [&](Int share) { FinishRows(args, plan, scratch, share); });
  scratch.dgamma.Store(args.dgamma);
  scratch.dbeta.Store(args.dbeta);
}

}  // namespace megafold::cpu
