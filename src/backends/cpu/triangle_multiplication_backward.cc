#include <algorithm>
#include <vector>

#include "backends/cpu/gates.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/partial_sum.h"
#include "backends/cpu/triangle_multiplication.h"
#include "backends/cpu/triangle_multiplication_pieces.h"

namespace megafold::cpu {
namespace {

using namespace triangle;  // NOLINT(google-build-using-namespace): the pieces of this very operator
using Args = ops::TriangleMultiplicationBackwardArgs;
using Int = std::int64_t;

bool WantsInputGradient(const Args& args) {
  return args.dx.defined() || args.dparams.gamma_in.defined() || args.dparams.beta_in.defined();
}

bool WantsProjectionGradients(const Args& args) {
  const ops::TriangleMultiplicationParams& grads = args.dparams;
  return grads.wap.defined() || grads.wag.defined() || grads.wbp.defined() || grads.wbg.defined();
}

// A weight [outputs, features], packed for the product with it and with its transpose.
struct PackedWeight {
  Block rows;
  float *transposed, *plain;

  PackedWeight(Int outputs, Int features, Arena& arena)
      : rows(arena.NewBlock(outputs, features)),
        transposed(arena.Floats(PackedSize(features, outputs))),
        plain(arena.Floats(PackedSize(outputs, features))) {}

  void Pack() const {
    PackMatrix(rows.data, 1, rows.stride, rows.columns, rows.rows, transposed);
    PackMatrix(rows.data, rows.stride, 1, rows.rows, rows.columns, plain);
  }
  // out = u W^T
  void Forward(Block u, Block out) const {
    Gemm({u.rows, rows.rows, rows.columns}, RowMajor(u.data, u.stride),
         Packed(transposed, rows.columns), nullptr, 0, out.data, out.stride);
  }
  // du = (du +) dy W
  void Backward(Block dy, bool accumulate, Block du) const {
    Gemm({dy.rows, rows.columns, rows.rows}, RowMajor(dy.data, dy.stride), Packed(plain, rows.rows),
         accumulate ? du.data : nullptr, du.stride, du.data, du.stride);
  }
};

struct Scratch {
  struct Slab {
    Block x, z, gate, projected, dy, dz;  // C columns
    Block t, normal_t, dt;                // hidden columns
    Block group;                          // 4 * group_width columns
    float *factor, *mean, *rstd;
    Planes dt_transposed, da, db;  // one channel each
  };
  LayerNormVectors norm_in, norm_out;
  PackedWeight projections, wop, wog;
  Planes dt;                    // every hidden channel
  Planes a, a_gate, b, b_gate;  // one group
  float* dz;                    // [N, N, C] of one batch, null where dx holds it
  std::vector<Slab> slabs;
  PartialSum dgamma_in, dbeta_in, dgamma_out, dbeta_out, dprojections, dwop, dwog;

  Scratch(const Args& args, const Dims& dims, int count, Arena& arena)
      : norm_in(dims.channels, arena),
        norm_out(dims.hidden, arena),
        projections(4 * dims.group_width(), dims.channels, arena),
        wop(dims.channels, dims.hidden, arena),
        wog(dims.channels, dims.channels, arena),
        dt(NewPlanes(arena, dims.hidden, dims.length)),
        a(NewPlanes(arena, dims.group_width(), dims.length)),
        a_gate(NewPlanes(arena, dims.group_width(), dims.length)),
        b(NewPlanes(arena, dims.group_width(), dims.length)),
        b_gate(NewPlanes(arena, dims.group_width(), dims.length)),
        dz(DzInDx(args) || !WantsInputGradient(args)
               ? nullptr
               : arena.Floats(dims.length * dims.length * dims.channels)),
        slabs(static_cast<std::size_t>(count)),
        dgamma_in(arena, count, 1, dims.channels, args.dparams.gamma_in.defined()),
        dbeta_in(arena, count, 1, dims.channels, args.dparams.beta_in.defined()),
        dgamma_out(arena, count, 1, dims.hidden, args.dparams.gamma_out.defined()),
        dbeta_out(arena, count, 1, dims.hidden, args.dparams.beta_out.defined()),
        dprojections(arena, count, dims.groups() * 4 * dims.group_width(), dims.channels,
                     WantsProjectionGradients(args)),
        dwop(arena, count, dims.channels, dims.hidden, args.dparams.wop.defined()),
        dwog(arena, count, dims.channels, dims.channels, args.dparams.wog.defined()) {
    for (Slab& slab : slabs) AllocateSlab(dims, arena, slab);
  }

  static bool DzInDx(const Args& args) {
    return args.dx.defined() && args.dx.dtype == DType::kFloat32;
  }

 private:
  static void AllocateSlab(const Dims& dims, Arena& arena, Slab& slab) {
    for (Block* block : {&slab.x, &slab.z, &slab.gate, &slab.projected, &slab.dy, &slab.dz}) {
      *block = arena.NewBlock(kTileRows, dims.channels);
    }
    for (Block* block : {&slab.t, &slab.normal_t, &slab.dt}) {
      *block = arena.NewBlock(kTileRows, dims.hidden);
    }
    slab.group = arena.NewBlock(kTileRows, 4 * dims.group_width());
    for (float** vector : {&slab.factor, &slab.mean, &slab.rstd}) *vector = arena.Floats(kTileRows);
    for (Planes* planes : {&slab.dt_transposed, &slab.da, &slab.db}) {
      *planes = NewPlanes(arena, 1, dims.length);
    }
  }
};

Slabs SlabsOf(const Dims& dims) { return Slabs(Tiling(dims.length).count(), 1, NumThreads()); }

// One backward call: the arguments with their scratch, a method per stage.
class BackwardPass {
 public:
  BackwardPass(const Args& args, Arena& arena)
      : args_(args), dims_(DimsOf(args)), scratch_(args, dims_, SlabsOf(dims_).count, arena) {}

  void Run() {
    Prepare();
    for (Int batch = 0; batch < dims_.batch; ++batch) {
      ForEachTile([&](Int slab, Tile tile) { Output(batch, slab, tile); });
      for (Int group = 0; group < dims_.groups() && NeedsProjections(); ++group) {
        LoadGroup(args_.params, dims_, group, scratch_.projections.rows);
        scratch_.projections.Pack();
        ForEachTile([&](Int slab, Tile tile) { Project(batch, group, slab, tile); });
        Multiply(group);
        ForEachTile([&](Int slab, Tile tile) { ProjectBackward(batch, group, slab, tile); });
      }
    }
    StoreSums();
  }

 private:
  bool transposed() const { return args_.direction == ops::TriangleDirection::kOutgoing; }
  bool NeedsProjections() const {
    return WantsInputGradient(args_) || WantsProjectionGradients(args_);
  }

  // The sums over all pairs, and whether each is wanted.
  std::vector<const PartialSum*> Sums() const {
    return {&scratch_.dgamma_in,    &scratch_.dbeta_in, &scratch_.dgamma_out, &scratch_.dbeta_out,
            &scratch_.dprojections, &scratch_.dwop,     &scratch_.dwog};
  }

  template <typename Body>
  void ForEachTile(const Body& body) const {
    const Tiling tiles(dims_.length);
    const Slabs slabs = SlabsOf(dims_);
    ParallelFor(slabs.count, [&](Int slab) {
      for (Int tile = slabs.Begin(slab); tile < slabs.End(slab); ++tile) body(slab, tiles[tile]);
    });
  }

  void Prepare() const {
    const ops::TriangleMultiplicationParams& params = args_.params;
    scratch_.norm_in.Load(params.gamma_in, params.beta_in, dims_.channels);
    scratch_.norm_out.Load(params.gamma_out, params.beta_out, dims_.hidden);
    LoadRows(RowsOf(params.wop, 0), scratch_.wop.rows);
    LoadRows(RowsOf(params.wog, 0), scratch_.wog.rows);
    scratch_.wop.Pack();
    scratch_.wog.Pack();
    ParallelFor(static_cast<Int>(scratch_.slabs.size()), [&](Int slab) {
      for (const PartialSum* sum : Sums()) sum->Clear(slab);
      // Columns of missing channels are never written and must not hold a NaN.
      const Block group = scratch_.slabs[static_cast<std::size_t>(slab)].group;
      std::fill_n(group.data, group.rows * group.stride, 0.0F);
    });
  }

  // dZ as it grows, indexed like the tiles of x that are `slow_is_second` or not.
  Pairs Dz(Int batch, bool slow_is_second) const {
    if (scratch_.dz == nullptr) return PairsOf(args_.dx, batch, slow_is_second);
    const Int row = dims_.length * dims_.channels;
    return slow_is_second ? Pairs{scratch_.dz, DType::kFloat32, dims_.channels, row}
                          : Pairs{scratch_.dz, DType::kFloat32, row, dims_.channels};
  }

  const Scratch::Slab& SlabOf(Int slab) const {
    return scratch_.slabs[static_cast<std::size_t>(slab)];
  }

  Block NormalisedInput(Int batch, bool slow_is_second, const Scratch::Slab& slab,
                        Tile tile) const {
    const Block x = First(slab.x, tile.rows());
    const Block z = First(slab.z, tile.rows());
    LoadTile(PairsOf(args_.x, batch, slow_is_second), tile, x);
    LayerNormRows(x, scratch_.norm_in.With(args_.eps), slab.mean, slab.rstd, z);
    return z;
  }

  // From dY to dT and the output gate's share of dZ.
  void Output(Int batch, Int s, Tile tile) const {
    const Scratch::Slab& slab = SlabOf(s);
    const Block z = NormalisedInput(batch, false, slab, tile);
    const Block gate = First(slab.gate, tile.rows());
    scratch_.wog.Forward(z, gate);
    SigmoidRows(gate);
    const Block t = First(slab.t, tile.rows());
    const Block normal_t = First(slab.normal_t, tile.rows());
    LoadTile(PairsOf(args_.triangle, batch, false), tile, t);
    LayerNormRows(t, scratch_.norm_out.With(args_.eps), slab.mean, slab.rstd, normal_t);
    const Block projected = First(slab.projected, tile.rows());
    scratch_.wop.Forward(normal_t, projected);
    const Block dy = First(slab.dy, tile.rows());
    LoadTile(PairsOf(args_.dy, batch, false), tile, dy);

    GateBackward(gate, projected, dy);
    const Block& dgate = projected;
    const Block& dprojected = dy;
    scratch_.dwog.AddProduct(s, dgate, z);
    scratch_.dwop.AddProduct(s, dprojected, normal_t);
    if (WantsInputGradient(args_)) {
      const Block dz = First(slab.dz, tile.rows());
      scratch_.wog.Backward(dgate, false, dz);
      StoreTile(dz, tile, Dz(batch, false));
    }
    const Block dt = First(slab.dt, tile.rows());
    scratch_.wop.Backward(dprojected, false, dt);
    LayerNormBackwardRows(dt, t, scratch_.norm_out.gamma, slab.mean, slab.rstd,
                          scratch_.dgamma_out.Of(s).data, scratch_.dbeta_out.Of(s).data);
    StorePlanes(dt, tile, scratch_.dt, 0);
  }

  // Planes of A, Bm and their sigmoids, one group of channels, one tile.
  void Project(Int batch, Int group, Int s, Tile tile) const {
    const Scratch::Slab& slab = SlabOf(s);
    const Block z = NormalisedInput(batch, transposed(), slab, tile);
    LoadMask(args_.mask, batch, transposed(), tile, slab.factor);
    const Block all = First(slab.group, tile.rows());
    scratch_.projections.Forward(z, all);
    Gate(Part(all, group, kGateA), Part(all, group, kValueA), slab.factor);
    Gate(Part(all, group, kGateB), Part(all, group, kValueB), slab.factor);
    StorePlanes(Part(all, group, kGateA), tile, scratch_.a_gate, 0);
    StorePlanes(Part(all, group, kValueA), tile, scratch_.a, 0);
    StorePlanes(Part(all, group, kGateB), tile, scratch_.b_gate, 0);
    StorePlanes(Part(all, group, kValueB), tile, scratch_.b, 0);
  }

  Block Part(Block all, Int group, Projection which) const {
    return Columns(all, which * dims_.group_width(), dims_.group_size(group));
  }

  // dA[k,i] = sum_j Bm[k,j] dT[i,j] and dBm[k,j] = sum_i A[k,i] dT[i,j]; then the planes of A and
  // Bm become the gradients of the gates before their sigmoids, the planes of the sigmoids those of
  // the values (but for the mask).
  void Multiply(Int group) const {
    const Slabs channels(dims_.group_size(group), 1, static_cast<int>(scratch_.slabs.size()));
    ParallelFor(channels.count, [&](Int s) {
      for (Int c = channels.Begin(s); c < channels.End(s); ++c) {
        MultiplyChannel(SlabOf(s), c, scratch_.dt.Channel(dims_.group_begin(group) + c));
      }
    });
  }

  void MultiplyChannel(const Scratch::Slab& slab, Int c, const float* dt) const {
    const Int n = dims_.length;
    const Int stride = scratch_.dt.stride;  // of every plane here
    float* a = scratch_.a.Channel(c);
    float* b = scratch_.b.Channel(c);
    Transpose(dt, stride, n, n, slab.dt_transposed.data, stride);
    Gemm({n, n, n}, RowMajor(b, stride), Rows(slab.dt_transposed.data, stride), nullptr, 0,
         slab.da.data, stride);
    Gemm({n, n, n}, RowMajor(a, stride), Rows(dt, stride), nullptr, 0, slab.db.data, stride);
    GatedProductBackward(slab.da.data, a, scratch_.a_gate.Channel(c), scratch_.a.plane);
    GatedProductBackward(slab.db.data, b, scratch_.b_gate.Channel(c), scratch_.b.plane);
  }

  // From the group's planes to the gradients of its weights and its share of dZ; after the last
  // group, dX.
  void ProjectBackward(Int batch, Int group, Int s, Tile tile) const {
    const Scratch::Slab& slab = SlabOf(s);
    const Block z = NormalisedInput(batch, transposed(), slab, tile);
    LoadMask(args_.mask, batch, transposed(), tile, slab.factor);
    const Block all = First(slab.group, tile.rows());
    LoadPlanes(scratch_.a, tile, 0, Part(all, group, kGateA));
    LoadPlanes(scratch_.a_gate, tile, 0, Part(all, group, kValueA));
    LoadPlanes(scratch_.b, tile, 0, Part(all, group, kGateB));
    LoadPlanes(scratch_.b_gate, tile, 0, Part(all, group, kValueB));
    ScaleRows(Part(all, group, kValueA), slab.factor);
    ScaleRows(Part(all, group, kValueB), slab.factor);
    scratch_.dprojections.AddProduct(s, all, z, group * 4 * dims_.group_width());
    if (!WantsInputGradient(args_)) return;
    const Block dz = First(slab.dz, tile.rows());
    LoadTile(Dz(batch, transposed()), tile, dz);
    scratch_.projections.Backward(all, true, dz);
    if (group + 1 < dims_.groups()) {
      StoreTile(dz, tile, Dz(batch, transposed()));
      return;
    }
    LayerNormBackwardRows(dz, First(slab.x, tile.rows()), scratch_.norm_in.gamma, slab.mean,
                          slab.rstd, scratch_.dgamma_in.Of(s).data, scratch_.dbeta_in.Of(s).data);
    if (args_.dx.defined()) StoreTile(dz, tile, PairsOf(args_.dx, batch, transposed()));
  }

  void StoreSums() const {
    const ops::TriangleMultiplicationParams& grads = args_.dparams;
    scratch_.dgamma_in.Store(grads.gamma_in);
    scratch_.dbeta_in.Store(grads.beta_in);
    scratch_.dgamma_out.Store(grads.gamma_out);
    scratch_.dbeta_out.Store(grads.beta_out);
    scratch_.dwop.Store(grads.wop);
    scratch_.dwog.Store(grads.wog);
    const TensorView* targets[] = {&grads.wag, &grads.wap, &grads.wbg, &grads.wbp};
    for (Int group = 0; group < dims_.groups(); ++group) {
      for (int which = kGateA; which <= kValueB; ++which) {
        if (!targets[which]->defined()) continue;
        TensorView part = *targets[which];
        part.data = RowsOf(part, dims_.group_begin(group)).data;
        part.sizes[0] = dims_.group_size(group);
        scratch_.dprojections.Store(part, (group * 4 + which) * dims_.group_width());
      }
    }
  }

  const Args& args_;
  Dims dims_;
  Scratch scratch_;
};

std::size_t BackwardWorkspace(const Args& args) {
  Arena arena(nullptr);
  BackwardPass(args, arena);
  return arena.used();
}

void Backward(const Args& args, Workspace workspace, Stream) {
  Arena arena(workspace.data);
  BackwardPass(args, arena).Run();
}

}  // namespace

Kernel<Args> TriangleMultiplicationBackwardKernel() {
  return {&SupportsStorage<Args>, &BackwardWorkspace, &Backward};
}

}  // namespace megafold::cpu
