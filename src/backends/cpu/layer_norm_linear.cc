#include "backends/cpu/layer_norm_linear.h"

#include <algorithm>
#include <vector>

#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/partial_sum.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"
#include "backends/cpu/weights.h"

namespace megafold::cpu {
namespace {

using ForwardArgs = ops::LayerNormLinearForwardArgs;
using BackwardArgs = ops::LayerNormLinearBackwardArgs;
using Int = std::int64_t;

struct Dims {
  Int rows, features, outputs, block;
};

template <typename Args>
Dims DimsOf(const Args& args) {
  const Int features = args.x.size(1);
  const Int outputs = args.weight.size(0);
  return {args.x.size(0), features, outputs, BlockRows(features + outputs)};
}

template <typename Args>
Slabs SlabsOf(const Args& args) {
  return Slabs(args.x.size(0), kSlabStep, NumThreads());
}

struct ForwardScratch {
  struct Slab {
    Block x, u, y;
  };
  float *gamma, *beta, *bias, *packed;
  FloatRows weight;
  std::vector<Slab> slabs;

  ForwardScratch(const ForwardArgs& args, const Dims& dims, int count, Arena& arena)
      : gamma(arena.Floats(PadColumns(dims.features))),
        beta(arena.Floats(PadColumns(dims.features))),
        bias(arena.Floats(PadColumns(dims.outputs))),
        packed(arena.Floats(PackedSize(dims.features, dims.outputs))),
        weight(args.weight, arena),
        slabs(static_cast<std::size_t>(count)) {
    for (Slab& slab : slabs) {
      slab = {RoomFor(args.x, dims.block, dims.features, arena),
              arena.NewBlock(dims.block, dims.features),
              RoomFor(args.y, dims.block, dims.outputs, arena)};
    }
  }
};

std::size_t ForwardWorkspace(const ForwardArgs& args) {
  Arena arena(nullptr);
  ForwardScratch(args, DimsOf(args), SlabsOf(args).count, arena);
  return arena.used();
}

void Forward(const ForwardArgs& args, Workspace workspace, Stream) {
  Arena arena(workspace.data);
  const Dims dims = DimsOf(args);
  const Slabs slabs = SlabsOf(args);
  const ForwardScratch scratch(args, dims, slabs.count, arena);
  LoadVector(args.gamma, dims.features, 1, scratch.gamma);
  LoadVector(args.beta, dims.features, 0, scratch.beta);
  LoadVector(args.linear_bias, dims.outputs, 0, scratch.bias);
  PackTransposed(scratch.weight.Load(args.weight), scratch.packed);
  ParallelFor(slabs.count, [&](Int s) {
    const auto& slab = scratch.slabs[static_cast<std::size_t>(s)];
    for (Int row = slabs.Begin(s); row < slabs.End(s); row += dims.block) {
      const Int rows = std::min(dims.block, slabs.End(s) - row);
      const Block u = First(slab.u, rows);
      const Block y = PartOf(args.y, row, 0, First(slab.y, rows));
      LayerNormRows(LoadPart(args.x, row, 0, First(slab.x, rows)),
                    {scratch.gamma, scratch.beta, args.eps}, args.mean.ptr<float>() + row,
                    args.rstd.ptr<float>() + row, u);
      Gemm({rows, dims.outputs, dims.features}, RowMajor(u.data, u.stride),
           Packed(scratch.packed, dims.features), scratch.bias, 0, y.data, y.stride);
      StorePart(args.y, row, 0, First(slab.y, rows));
    }
  });
}

bool WantsInputGradient(const BackwardArgs& args) {
  return args.dx.defined() || args.dgamma.defined() || args.dbeta.defined();
}

struct BackwardScratch {
  struct Slab {
    Block x, u, dy, du;
  };
  float *gamma, *beta, *packed;
  FloatRows weight;
  std::vector<Slab> slabs;
  PartialSum dgamma, dbeta, dweight, dbias;

  BackwardScratch(const BackwardArgs& args, const Dims& dims, int count, Arena& arena)
      : gamma(arena.Floats(PadColumns(dims.features))),
        beta(arena.Floats(PadColumns(dims.features))),
        packed(arena.Floats(PackedSize(dims.outputs, dims.features))),
        weight(args.weight, arena),
        slabs(static_cast<std::size_t>(count)),
        dgamma(arena, count, 1, dims.features, args.dgamma.defined()),
        dbeta(arena, count, 1, dims.features, args.dbeta.defined()),
        dweight(arena, count, dims.outputs, dims.features, args.dweight.defined()),
        dbias(arena, count, 1, dims.outputs, args.dlinear_bias.defined()) {
    for (Slab& slab : slabs) {
      slab = {RoomFor(args.x, dims.block, dims.features, arena),
              arena.NewBlock(dims.block, dims.features),
              RoomForFactor(args.dy, dims.block, dims.outputs, arena),
              LiesReady(args.dx) ? RoomFor(args.dx, dims.block, dims.features, arena)
                                 : arena.NewBlock(dims.block, dims.features)};
    }
  }
};

std::size_t BackwardWorkspace(const BackwardArgs& args) {
  Arena arena(nullptr);
  BackwardScratch(args, DimsOf(args), SlabsOf(args).count, arena);
  return arena.used();
}

void BackwardSlab(const BackwardArgs& args, const Dims& dims, const BackwardScratch& scratch,
                  Int slab, Int begin, Int end) {
  const auto& blocks = scratch.slabs[static_cast<std::size_t>(slab)];
  for (const PartialSum* sum :
       {&scratch.dgamma, &scratch.dbeta, &scratch.dweight, &scratch.dbias}) {
    sum->Clear(slab);
  }
  for (Int row = begin; row < end; row += dims.block) {
    const Int rows = std::min(dims.block, end - row);
    const Block x = LoadPart(args.x, row, 0, First(blocks.x, rows));
    const Block u = First(blocks.u, rows);
    const Block dy = LoadPart(args.dy, row, 0, First(blocks.dy, rows));
    const Block du = PartOf(args.dx, row, 0, First(blocks.du, rows));
    const float* mean = args.mean.ptr<float>() + row;
    const float* rstd = args.rstd.ptr<float>() + row;
    if (scratch.dweight.wanted()) {
      NormaliseRows(x, {scratch.gamma, scratch.beta, 0}, mean, rstd, u);
      scratch.dweight.AddProduct(slab, dy, u);
    }
    if (scratch.dbias.wanted()) AddColumnSums(dy, scratch.dbias.Of(slab).data);
    if (!WantsInputGradient(args)) continue;
    Gemm({rows, dims.features, dims.outputs}, RowMajor(dy.data, dy.stride),
         Packed(scratch.packed, dims.outputs), nullptr, 0, du.data, du.stride);
    LayerNormBackwardRows(du, x, scratch.gamma, mean, rstd, scratch.dgamma.Of(slab).data,
                          scratch.dbeta.Of(slab).data);
    if (args.dx.defined()) StorePart(args.dx, row, 0, First(blocks.du, rows));
  }
}

void Backward(const BackwardArgs& args, Workspace workspace, Stream) {
  Arena arena(workspace.data);
  const Dims dims = DimsOf(args);
  const Slabs slabs = SlabsOf(args);
  const BackwardScratch scratch(args, dims, slabs.count, arena);
  LoadVector(args.gamma, dims.features, 1, scratch.gamma);
  LoadVector(args.beta, dims.features, 0, scratch.beta);
  PackPlain(scratch.weight.Load(args.weight), scratch.packed);
  ParallelFor(slabs.count, [&](Int slab) {
    BackwardSlab(args, dims, scratch, slab, slabs.Begin(slab), slabs.End(slab));
  });
  scratch.dgamma.Store(args.dgamma);
  scratch.dbeta.Store(args.dbeta);
  scratch.dweight.Store(args.dweight);
  scratch.dbias.Store(args.dlinear_bias);
}

}  // namespace

Kernel<ForwardArgs> LayerNormLinearForwardKernel() {
  return {&SupportsStorage<ForwardArgs>, &ForwardWorkspace, &Forward};
}

Kernel<BackwardArgs> LayerNormLinearBackwardKernel() {
  return {&SupportsStorage<BackwardArgs>, &BackwardWorkspace, &Backward};
}

}  // namespace megafold::cpu
