#include "backends/cpu/transition.h"

#include <algorithm>
#include <vector>

#include "backends/cpu/gates.h"
#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/partial_sum.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"
#include "backends/cpu/transition_few_rows.h"
#include "backends/cpu/weights.h"

namespace megafold::cpu {
namespace {

using ForwardArgs = ops::TransitionForwardArgs;
using BackwardArgs = ops::TransitionBackwardArgs;
using Int = std::int64_t;

// Hidden features that exist at a time.
constexpr Int kChunk = 2 * kPackedColumnStep;

struct Dims {
  Int rows, features, hidden, block;
};

template <typename Args>
Dims DimsOf(const Args& args) {
  const Int features = args.x.size(1);
  return {args.x.size(0), features, args.g1.size(0), BlockRows(2 * features + 2 * kChunk)};
}

Slabs SlabsOf(const Dims& dims) { return Slabs(dims.rows, kSlabStep, NumThreads()); }

// G1, G2 and W2 on the way to their packed forms.
struct Weights {
  FloatRows g1, g2, w2;

  template <typename Args>
  Weights(const Args& args, Arena& arena)
      : g1(args.g1, arena), g2(args.g2, arena), w2(args.w2, arena) {}
};

// out = left times columns [first, first + out.columns) of a packed matrix as deep as left is wide.
void MultiplyColumns(Block left, const float* packed, Int first, Block out) {
  Gemm({left.rows, out.columns, left.columns}, RowMajor(left.data, left.stride),
       Packed(packed, left.columns, first), nullptr, 0, out.data, out.stride);
}

// sum (+)= left times rows [first, first + left.columns) of a packed matrix of `depth` rows.
void MultiplyRows(Block left, const float* packed, Int depth, Int first, bool accumulate,
                  Block sum) {
  Gemm({left.rows, sum.columns, left.columns}, RowMajor(left.data, left.stride),
       Packed(packed, depth, 0, first), accumulate ? sum.data : nullptr, sum.stride, sum.data,
       sum.stride);
}

struct ForwardScratch {
  struct Slab {
    Block u, gate, value, y;
  };
  float *gamma, *beta, *g1, *g2, *w2;
  Weights weights;
  std::vector<Slab> slabs;

  ForwardScratch(const ForwardArgs& args, const Dims& dims, int count, Arena& arena)
      : gamma(arena.Floats(PadColumns(dims.features))),
        beta(arena.Floats(PadColumns(dims.features))),
        g1(arena.Floats(PackedSize(dims.features, dims.hidden))),
        g2(arena.Floats(PackedSize(dims.features, dims.hidden))),
        w2(arena.Floats(PackedSize(dims.hidden, dims.features))),
        weights(args, arena),
        slabs(static_cast<std::size_t>(count)) {
    for (Slab& slab : slabs) {
      slab = {arena.NewBlock(dims.block, dims.features), arena.NewBlock(dims.block, kChunk),
              arena.NewBlock(dims.block, kChunk), arena.NewBlock(dims.block, dims.features)};
    }
  }
};

std::size_t ForwardWorkspace(const ForwardArgs& args) {
  Arena arena(nullptr);
  const Dims dims = DimsOf(args);
  ForwardScratch(args, dims, SlabsOf(dims).count, arena);
  return arena.used();
}

void ForwardSlab(const ForwardArgs& args, const Dims& dims, const ForwardScratch& scratch, Int slab,
                 Int begin, Int end) {
  const auto& blocks = scratch.slabs[static_cast<std::size_t>(slab)];
  for (Int row = begin; row < end; row += dims.block) {
    const Int rows = std::min(dims.block, end - row);
    const Block u = First(blocks.u, rows);
    const Block y = First(blocks.y, rows);
    LoadRows(RowsOf(args.x, row), u);
    LayerNormRows(u, {scratch.gamma, scratch.beta, args.eps}, args.mean.ptr<float>() + row,
                  args.rstd.ptr<float>() + row, u);
    for (Int first = 0; first < dims.hidden; first += kChunk) {
      const Int width = std::min(kChunk, dims.hidden - first);
      const Block gate = Columns(First(blocks.gate, rows), 0, width);
      const Block value = Columns(First(blocks.value, rows), 0, width);
      MultiplyColumns(u, scratch.g1, first, gate);
      MultiplyColumns(u, scratch.g2, first, value);
      SwiGlu(gate, value);
      MultiplyRows(gate, scratch.w2, dims.hidden, first, first > 0, y);
    }
    StoreRows(y, RowsOf(args.y, row));
  }
}

void Forward(const ForwardArgs& args, Workspace workspace, Stream) {
  Arena arena(workspace.data);
  const Dims dims = DimsOf(args);
  const Slabs slabs = SlabsOf(dims);
  const ForwardScratch scratch(args, dims, slabs.count, arena);
  LoadVector(args.gamma, dims.features, 1, scratch.gamma);
  LoadVector(args.beta, dims.features, 0, scratch.beta);
  PackTransposed(scratch.weights.g1.Load(args.g1), scratch.g1);
  PackTransposed(scratch.weights.g2.Load(args.g2), scratch.g2);
  PackTransposed(scratch.weights.w2.Load(args.w2), scratch.w2);
  ParallelFor(slabs.count, [&](Int slab) {
    ForwardSlab(args, dims, scratch, slab, slabs.Begin(slab), slabs.End(slab));
  });
}

struct BackwardScratch {
  struct Slab {
    Block x, u, dy, du, gate, value, dhidden;
  };
  float *gamma, *beta;
  float *g1_transposed, *g2_transposed;  // for gate and value
  float *g1, *g2, *w2;                   // for the gradients of u and of the hidden features
  Weights weights;
  std::vector<Slab> slabs;
  PartialSum dgamma, dbeta, dg1, dg2, dw2;

  BackwardScratch(const BackwardArgs& args, const Dims& dims, int count, Arena& arena)
      : gamma(arena.Floats(PadColumns(dims.features))),
        beta(arena.Floats(PadColumns(dims.features))),
        g1_transposed(arena.Floats(PackedSize(dims.features, dims.hidden))),
        g2_transposed(arena.Floats(PackedSize(dims.features, dims.hidden))),
        g1(arena.Floats(PackedSize(dims.hidden, dims.features))),
        g2(arena.Floats(PackedSize(dims.hidden, dims.features))),
        w2(arena.Floats(PackedSize(dims.features, dims.hidden))),
        weights(args, arena),
        slabs(static_cast<std::size_t>(count)),
        dgamma(arena, count, 1, dims.features, args.dgamma.defined()),
        dbeta(arena, count, 1, dims.features, args.dbeta.defined()),
        dg1(arena, count, dims.hidden, dims.features, args.dg1.defined()),
        dg2(arena, count, dims.hidden, dims.features, args.dg2.defined()),
        dw2(arena, count, dims.features, dims.hidden, args.dw2.defined()) {
    for (Slab& slab : slabs) {
      for (Block* block : {&slab.x, &slab.u, &slab.dy, &slab.du}) {
        *block = arena.NewBlock(dims.block, dims.features);
      }
      for (Block* block : {&slab.gate, &slab.value, &slab.dhidden}) {
        *block = arena.NewBlock(dims.block, kChunk);
      }
    }
  }
};

std::size_t BackwardWorkspace(const BackwardArgs& args) {
  if (HasFewRows(args)) return TransitionFewRowsWorkspace(args);
  Arena arena(nullptr);
  const Dims dims = DimsOf(args);
  BackwardScratch(args, dims, SlabsOf(dims).count, arena);
  return arena.used();
}

bool WantsInputGradient(const BackwardArgs& args) {
  return args.dx.defined() || args.dgamma.defined() || args.dbeta.defined();
}

// One chunk of hidden features of one block of rows: its weights' gradients, and its share of du.
void BackwardChunk(const BackwardArgs& args, const Dims& dims, const BackwardScratch& scratch,
                   Int slab, Int rows, Int first) {
  const auto& blocks = scratch.slabs[static_cast<std::size_t>(slab)];
  const Int width = std::min(kChunk, dims.hidden - first);
  const Block u = First(blocks.u, rows);
  const Block dy = First(blocks.dy, rows);
  const Block gate = Columns(First(blocks.gate, rows), 0, width);
  const Block value = Columns(First(blocks.value, rows), 0, width);
  const Block dhidden = Columns(First(blocks.dhidden, rows), 0, width);
  MultiplyColumns(u, scratch.g1_transposed, first, gate);
  MultiplyColumns(u, scratch.g2_transposed, first, value);
  MultiplyColumns(dy, scratch.w2, first, dhidden);
  SwiGluBackward(gate, value, dhidden);
  scratch.dg1.AddProduct(slab, gate, u, first, 0);
  scratch.dg2.AddProduct(slab, value, u, first, 0);
  scratch.dw2.AddProduct(slab, dy, dhidden, 0, first);
  if (!WantsInputGradient(args)) return;
  const Block du = First(blocks.du, rows);
  MultiplyRows(gate, scratch.g1, dims.hidden, first, first > 0, du);
  MultiplyRows(value, scratch.g2, dims.hidden, first, true, du);
}

void BackwardSlab(const BackwardArgs& args, const Dims& dims, const BackwardScratch& scratch,
                  Int slab, Int begin, Int end) {
  const auto& blocks = scratch.slabs[static_cast<std::size_t>(slab)];
  for (const PartialSum* sum :
       {&scratch.dgamma, &scratch.dbeta, &scratch.dg1, &scratch.dg2, &scratch.dw2}) {
    sum->Clear(slab);
  }
  for (Int row = begin; row < end; row += dims.block) {
    const Int rows = std::min(dims.block, end - row);
    const Block x = First(blocks.x, rows);
    const Block du = First(blocks.du, rows);
    const float* mean = args.mean.ptr<float>() + row;
    const float* rstd = args.rstd.ptr<float>() + row;
    LoadRows(RowsOf(args.x, row), x);
    LoadRows(RowsOf(args.dy, row), First(blocks.dy, rows));
    NormaliseRows(x, {scratch.gamma, scratch.beta, 0}, mean, rstd, First(blocks.u, rows));
    for (Int first = 0; first < dims.hidden; first += kChunk) {
      BackwardChunk(args, dims, scratch, slab, rows, first);
    }
    if (!WantsInputGradient(args)) continue;
    LayerNormBackwardRows(du, x, scratch.gamma, mean, rstd, scratch.dgamma.Of(slab).data,
                          scratch.dbeta.Of(slab).data);
    if (args.dx.defined()) StoreRows(du, RowsOf(args.dx, row));
  }
}

void Backward(const BackwardArgs& args, Workspace workspace, Stream) {
  if (HasFewRows(args)) {
    TransitionFewRowsBackward(args, workspace);
    return;
  }
  Arena arena(workspace.data);
  const Dims dims = DimsOf(args);
  const Slabs slabs = SlabsOf(dims);
  const BackwardScratch scratch(args, dims, slabs.count, arena);
  LoadVector(args.gamma, dims.features, 1, scratch.gamma);
  LoadVector(args.beta, dims.features, 0, scratch.beta);
  const Block g1 = scratch.weights.g1.Load(args.g1);
  const Block g2 = scratch.weights.g2.Load(args.g2);
  PackTransposed(g1, scratch.g1_transposed);
  PackTransposed(g2, scratch.g2_transposed);
  PackPlain(g1, scratch.g1);
  PackPlain(g2, scratch.g2);
  PackPlain(scratch.weights.w2.Load(args.w2), scratch.w2);
  ParallelFor(slabs.count, [&](Int slab) {
    BackwardSlab(args, dims, scratch, slab, slabs.Begin(slab), slabs.End(slab));
  });
  scratch.dgamma.Store(args.dgamma);
  scratch.dbeta.Store(args.dbeta);
  scratch.dg1.Store(args.dg1);
  scratch.dg2.Store(args.dg2);
  scratch.dw2.Store(args.dw2);
}

}  // namespace

Kernel<ForwardArgs> TransitionForwardKernel() {
  return {&SupportsStorage<ForwardArgs>, &ForwardWorkspace, &Forward};
}

Kernel<BackwardArgs> TransitionBackwardKernel() {
  return {&SupportsStorage<BackwardArgs>, &BackwardWorkspace, &Backward};
}

}  // namespace megafold::cpu
