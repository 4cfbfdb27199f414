#include <algorithm>
#include <vector>

#include "backends/cpu/gates.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/triangle_multiplication.h"
#include "backends/cpu/triangle_multiplication_pieces.h"

namespace megafold::cpu {
namespace {

using namespace triangle;  // NOLINT(google-build-using-namespace): the pieces of this very operator
using Args = ops::TriangleMultiplicationForwardArgs;
using Int = std::int64_t;

// Rows of a plane that one task of the N^3 product computes: a multiple of the kernel's tile
// height.
constexpr Int kProductRows = 96;

struct Scratch {
  struct Slab {
    Block z, projections, t, projected;
    float *factor, *mean, *rstd;
  };
  LayerNormVectors norm_in, norm_out;
  Block group_weights, wop_rows, wog_rows;
  float *group_packed, *wop, *wog;
  Planes a, b, t;
  std::vector<Slab> slabs;

  Scratch(const Dims& dims, int count, Arena& arena)
      : norm_in(dims.channels, arena),
        norm_out(dims.hidden, arena),
        group_weights(arena.NewBlock(4 * dims.group_width(), dims.channels)),
        wop_rows(arena.NewBlock(dims.channels, dims.hidden)),
        wog_rows(arena.NewBlock(dims.channels, dims.channels)),
        group_packed(arena.Floats(PackedSize(dims.channels, 4 * dims.group_width()))),
        wop(arena.Floats(PackedSize(dims.hidden, dims.channels))),
        wog(arena.Floats(PackedSize(dims.channels, dims.channels))),
        a(NewPlanes(arena, dims.group_width(), dims.length)),
        b(NewPlanes(arena, dims.group_width(), dims.length)),
        t(NewPlanes(arena, dims.group_width(), dims.length)),
        slabs(static_cast<std::size_t>(count)) {
    for (Slab& slab : slabs) {
      slab.z = arena.NewBlock(kTileRows, dims.channels);
      // The output stage uses the same room for its gate.
      slab.projections = arena.NewBlock(kTileRows, std::max(4 * dims.group_width(), dims.channels));
      slab.t = arena.NewBlock(kTileRows, dims.hidden);
      slab.projected = arena.NewBlock(kTileRows, dims.channels);
      slab.factor = arena.Floats(kTileRows);
      slab.mean = arena.Floats(kTileRows);
      slab.rstd = arena.Floats(kTileRows);
    }
  }
};

Slabs SlabsOf(const Dims& dims) { return Slabs(Tiling(dims.length).count(), 1, NumThreads()); }

// One forward call: the arguments with their scratch, a method per stage.
class ForwardPass {
 public:
  ForwardPass(const Args& args, Arena& arena)
      : args_(args), dims_(DimsOf(args)), scratch_(dims_, SlabsOf(dims_).count, arena) {}

  void Run() {
    PackWeights();
    for (Int batch = 0; batch < dims_.batch; ++batch) {
      for (Int group = 0; group < dims_.groups(); ++group) {
        PackGroup(group);
        ForEachTile(
            [&](const Scratch::Slab& slab, Tile tile) { Project(batch, group, slab, tile); });
        Multiply(group);
        ForEachTile(
            [&](const Scratch::Slab& slab, Tile tile) { StoreT(batch, group, slab, tile); });
      }
      ForEachTile([&](const Scratch::Slab& slab, Tile tile) { Output(batch, slab, tile); });
    }
  }

 private:
  // In the planes the reduced index is the slow one.
  bool transposed() const { return args_.direction == ops::TriangleDirection::kOutgoing; }

  template <typename Body>
  void ForEachTile(const Body& body) const {
    const Tiling tiles(dims_.length);
    const Slabs slabs = SlabsOf(dims_);
    ParallelFor(slabs.count, [&](Int s) {
      for (Int tile = slabs.Begin(s); tile < slabs.End(s); ++tile) {
        body(scratch_.slabs[static_cast<std::size_t>(s)], tiles[tile]);
      }
    });
  }

  void PackWeights() const {
    const ops::TriangleMultiplicationParams& params = args_.params;
    scratch_.norm_in.Load(params.gamma_in, params.beta_in, dims_.channels);
    scratch_.norm_out.Load(params.gamma_out, params.beta_out, dims_.hidden);
    LoadRows(RowsOf(params.wop, 0), scratch_.wop_rows);
    LoadRows(RowsOf(params.wog, 0), scratch_.wog_rows);
    PackMatrix(scratch_.wop_rows.data, 1, scratch_.wop_rows.stride, dims_.hidden, dims_.channels,
               scratch_.wop);
    PackMatrix(scratch_.wog_rows.data, 1, scratch_.wog_rows.stride, dims_.channels, dims_.channels,
               scratch_.wog);
  }

  void PackGroup(Int group) const {
    LoadGroup(args_.params, dims_, group, scratch_.group_weights);
    PackMatrix(scratch_.group_weights.data, 1, scratch_.group_weights.stride, dims_.channels,
               scratch_.group_weights.rows, scratch_.group_packed);
  }

  Block NormalisedInput(Int batch, bool slow_is_second, const Scratch::Slab& slab,
                        Tile tile) const {
    const Block z = First(slab.z, tile.rows());
    LoadTile(PairsOf(args_.x, batch, slow_is_second), tile, z);
    LayerNormRows(z, scratch_.norm_in.With(args_.eps), slab.mean, slab.rstd, z);
    return z;
  }

  // Planes of A and Bm, one group of channels, one tile.
  void Project(Int batch, Int group, const Scratch::Slab& slab, Tile tile) const {
    const Int width = dims_.group_width();
    const Int size = dims_.group_size(group);
    const Block z = NormalisedInput(batch, transposed(), slab, tile);
    LoadMask(args_.mask, batch, transposed(), tile, slab.factor);
    const Block p = Columns(First(slab.projections, tile.rows()), 0, 4 * width);
    Gemm({z.rows, p.columns, dims_.channels}, RowMajor(z.data, z.stride),
         Packed(scratch_.group_packed, dims_.channels), nullptr, 0, p.data, p.stride);
    const auto part = [&](Projection which) { return Columns(p, which * width, size); };
    Gate(part(kGateA), part(kValueA), slab.factor);
    Gate(part(kGateB), part(kValueB), slab.factor);
    StorePlanes(part(kValueA), tile, scratch_.a, 0);
    StorePlanes(part(kValueB), tile, scratch_.b, 0);
  }

  // T = A^T Bm, channel by channel.
  void Multiply(Int group) const {
    const Int blocks = (dims_.length + kProductRows - 1) / kProductRows;
    const Planes& a = scratch_.a;
    const Planes& b = scratch_.b;
    const Planes& t = scratch_.t;
    ParallelFor(dims_.group_size(group) * blocks, [&](Int task) {
      const Int channel = task / blocks;
      const Int row = task % blocks * kProductRows;
      Gemm({std::min(kProductRows, dims_.length - row), dims_.length, dims_.length},
           Transposed(a.Channel(channel) + row, a.stride), Rows(b.Channel(channel), b.stride),
           nullptr, 0, t.Channel(channel) + row * t.stride, t.stride);
    });
  }

  void StoreT(Int batch, Int group, const Scratch::Slab& slab, Tile tile) const {
    const Block t = Columns(First(slab.t, tile.rows()), 0, dims_.group_size(group));
    LoadPlanes(scratch_.t, tile, 0, t);
    StoreTile(t, tile,
              ColumnsFrom(PairsOf(args_.triangle, batch, false), dims_.group_begin(group)));
  }

  // Y = sigmoid(Z Wog^T) * (LN(T) Wop^T)
  void Output(Int batch, const Scratch::Slab& slab, Tile tile) const {
    const Block z = NormalisedInput(batch, false, slab, tile);
    const Block gate = Columns(First(slab.projections, tile.rows()), 0, dims_.channels);
    Gemm({z.rows, dims_.channels, dims_.channels}, RowMajor(z.data, z.stride),
         Packed(scratch_.wog, dims_.channels), nullptr, 0, gate.data, gate.stride);
    const Block t = First(slab.t, tile.rows());
    LoadTile(PairsOf(args_.triangle, batch, false), tile, t);
    LayerNormRows(t, scratch_.norm_out.With(args_.eps), slab.mean, slab.rstd, t);
    const Block y = First(slab.projected, tile.rows());
    Gemm({t.rows, dims_.channels, dims_.hidden}, RowMajor(t.data, t.stride),
         Packed(scratch_.wop, dims_.hidden), nullptr, 0, y.data, y.stride);
    std::fill_n(slab.factor, kTileRows, 1.0F);
    Gate(gate, y, slab.factor);
    StoreTile(y, tile, PairsOf(args_.y, batch, false));
  }

  const Args& args_;
  Dims dims_;
  Scratch scratch_;
};

std::size_t ForwardWorkspace(const Args& args) {
  Arena arena(nullptr);
  ForwardPass(args, arena);
  return arena.used();
}

void Forward(const Args& args, Workspace workspace, Stream) {
  Arena arena(workspace.data);
  ForwardPass(args, arena).Run();
}

}  // namespace

Kernel<Args> TriangleMultiplicationForwardKernel() {
  return {&SupportsStorage<Args>, &ForwardWorkspace, &Forward};
}

}  // namespace megafold::cpu
