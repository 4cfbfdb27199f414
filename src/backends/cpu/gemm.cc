#include "backends/cpu/gemm.h"

#include <algorithm>

// foreach_target.h must come before any other Highway header.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/gemm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#undef MEGAFOLD_UNROLL
#if defined(__clang__)
#define MEGAFOLD_UNROLL _Pragma("unroll")
#else
#define MEGAFOLD_UNROLL _Pragma("GCC unroll 8")
#endif

HWY_BEFORE_NAMESPACE();
namespace megafold::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using Int = std::int64_t;

constexpr int kTileRows = 6;
// 24 accumulators of 32 registers, or 12 of 16.
constexpr int kTileVectors = HWY_MAX_BYTES >= 64 ? 4 : 2;
// Depth of one pass over a tile: a panel of the right side then stays in L2 and the left rows in
// L1.
constexpr Int kDepthBlock = 256;

struct TileArgs {
  const float* a;
  Int a_stride;  // between rows, or between depths when transposed
  const float* b;
  Int b_stride;
  const float* init;
  Int init_stride;
  const float* soon;
  Int soon_stride;
  float* c;
  Int c_stride;
  Int depth;
};

// The sums of a tile of kVectors vectors of D a row.
template <class D, int kRows, int kVectors, bool kTransposed>
void Tile(const TileArgs& args) {
  using V = hn::Vec<D>;
  const D d;
  const Int lanes = static_cast<Int>(hn::Lanes(d));
  const float* HWY_RESTRICT a = args.a;
  const float* HWY_RESTRICT b = args.b;
  const Int a_stride = args.a_stride;
  V sum[kRows][kVectors];
  MEGAFOLD_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  const Int lines = args.soon == nullptr ? 0 : kRows * kVectors;
  for (Int p = 0; p < args.depth; ++p) {
    for (Int line = p; line < lines; line += args.depth) {
      constexpr int kIntoL2 = 2;
      __builtin_prefetch(args.soon + line / kVectors * args.soon_stride + line % kVectors * lanes,
                         0, kIntoL2);
    }
    V right[kVectors];
    MEGAFOLD_UNROLL
    for (int v = 0; v < kVectors; ++v) right[v] = hn::LoadU(d, b + v * lanes);
    MEGAFOLD_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const V left = hn::Set(d, kTransposed ? a[r] : a[r * a_stride]);
      MEGAFOLD_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
    }
    a += kTransposed ? a_stride : 1;
    b += args.b_stride;
  }
  // Unrolled, so that the sums stay in registers.
  MEGAFOLD_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (args.init == nullptr) break;
    const float* init = args.init + r * args.init_stride;
    MEGAFOLD_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = hn::Add(sum[r][v], hn::LoadU(d, init + v * lanes));
    }
  }
  MEGAFOLD_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float* c = args.c + r * args.c_stride;
    MEGAFOLD_UNROLL
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, c + v * lanes);
  }
}

using TileFunction = void (*)(const TileArgs&);

template <class D, int kVectors, bool kTransposed>
TileFunction SelectRows(Int rows) {
  static constexpr TileFunction kTable[kTileRows] = {
      &Tile<D, 1, kVectors, kTransposed>, &Tile<D, 2, kVectors, kTransposed>,
      &Tile<D, 3, kVectors, kTransposed>, &Tile<D, 4, kVectors, kTransposed>,
      &Tile<D, 5, kVectors, kTransposed>, &Tile<D, 6, kVectors, kTransposed>};
  return kTable[rows - 1];
}

// With `half`, the last of `vectors` is half a one.
template <bool kTransposed>
TileFunction SelectTile(Int rows, Int vectors, bool half) {
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return SelectRows<D, 4, kTransposed>(rows);
    if (vectors == 3) return SelectRows<D, 3, kTransposed>(rows);
    // Three half vectors: beside a whole one, a half one takes as long.
    if (vectors == 2 && half) return SelectRows<hn::Half<D>, 3, kTransposed>(rows);
  }
  return vectors == 2 ? SelectRows<D, 2, kTransposed>(rows) : SelectRows<D, 1, kTransposed>(rows);
}

TileFunction SelectTile(Int rows, Int vectors, bool transposed, bool half) {
  return transposed ? SelectTile<true>(rows, vectors, half)
                    : SelectTile<false>(rows, vectors, half);
}

Int PanelWidth() { return kTileVectors * static_cast<Int>(hn::Lanes(D())); }

// One panel of columns against all rows.
void Panel(Int rows, Int vectors, bool half, const GemmLhs& a, TileArgs args) {
  const bool transposed = a.row_stride == 1;
  const TileFunction whole = SelectTile(kTileRows, vectors, transposed, half);
  args.a_stride = transposed ? a.depth_stride : a.row_stride;
  Int row = 0;
  const auto step = [&](Int count) {
    row += count;
    args.a += count * a.row_stride;
    args.c += count * args.c_stride;
    if (args.init != nullptr) args.init += count * args.init_stride;
    if (args.soon != nullptr) args.soon += count * args.soon_stride;
  };
  for (; row + kTileRows <= rows; step(kTileRows)) whole(args);
  if (row < rows) SelectTile(rows - row, vectors, transposed, half)(args);
}

void GemmImpl(GemmShape shape, GemmLhs a, GemmRhs b, const float* init, Int init_stride, float* c,
              Int c_stride, GemmSoon soon) {
  const Int lanes = static_cast<Int>(hn::Lanes(D()));
  const Int columns = PadColumns(shape.columns);
  // A depth of zero still has to write init (or zeros).
  for (Int first = 0; first == 0 || first < shape.depth; first += kDepthBlock) {
    const Int depth = std::min(kDepthBlock, shape.depth - first);
    if (first > 0) {
      init = c;
      init_stride = c_stride;
      soon = {};
    }
    if (soon.data == nullptr) soon = {init, init_stride};
    for (Int column = 0; column < columns; column += PanelWidth()) {
      const Int width = std::min(PanelWidth(), columns - column);
      TileArgs args{};
      args.a = a.data + first * a.depth_stride;
      args.b = b.stride == 0 ? b.data + column * b.packed_depth + (b.first_depth + first) * width
                             : b.data + first * b.stride + column;
      args.b_stride = b.stride == 0 ? width : b.stride;
      args.init = init == nullptr ? nullptr : init + column;
      args.init_stride = init_stride;
      args.soon = soon.data == nullptr ? nullptr : soon.data + column;
      args.soon_stride = soon.stride;
      args.c = c + column;
      args.c_stride = c_stride;
      args.depth = depth;
      // Attention's 24 features are a vector and a half.
      const bool half = init == c && shape.columns - column <= width - lanes / 2;
      Panel(shape.rows, width / lanes, half, a, args);
    }
  }
}

// Four by four elements at `from`, transposed to `to`.
void TransposeFour(const float* from, Int from_stride, float* to, Int to_stride) {
#if HWY_TARGET == HWY_SCALAR
  for (Int r = 0; r < 4; ++r) {
    for (Int c = 0; c < 4; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
#else
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<std::uint64_t, 2> d2;
  const auto v0 = hn::LoadU(d4, from);
  const auto v1 = hn::LoadU(d4, from + from_stride);
  const auto v2 = hn::LoadU(d4, from + 2 * from_stride);
  const auto v3 = hn::LoadU(d4, from + 3 * from_stride);
  const auto low01 = hn::BitCast(d2, hn::InterleaveLower(d4, v0, v1));
  const auto high01 = hn::BitCast(d2, hn::InterleaveUpper(d4, v0, v1));
  const auto low23 = hn::BitCast(d2, hn::InterleaveLower(d4, v2, v3));
  const auto high23 = hn::BitCast(d2, hn::InterleaveUpper(d4, v2, v3));
  hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, low01, low23)), d4, to);
  hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, low01, low23)), d4, to + to_stride);
  hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, high01, high23)), d4, to + 2 * to_stride);
  hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, high01, high23)), d4, to + 3 * to_stride);
#endif
}

// Rows of `in` are walked innermost, so that every cache line of `out` is filled at once.
void TransposeImpl(const float* in, Int in_stride, Int rows, Int columns, float* out,
                   Int out_stride) {
  Int c = 0;
  for (; c + 4 <= columns; c += 4) {
    Int r = 0;
    for (; r + 4 <= rows; r += 4) {
      TransposeFour(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
    for (; r < rows; ++r) {
      for (Int i = c; i < c + 4; ++i) out[i * out_stride + r] = in[r * in_stride + i];
    }
  }
  for (; c < columns; ++c) {
    for (Int r = 0; r < rows; ++r) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

// Panel after panel of PanelWidth() columns (the last may be narrower), each stored depth by depth.
void PackImpl(const float* source, Int depth_stride, Int column_stride, Int depth, Int columns,
              float* packed) {
  const Int padded = PadColumns(columns);
  for (Int column = 0; column < padded; column += PanelWidth()) {
    const Int width = std::min(PanelWidth(), padded - column);
    const Int filled = std::clamp<Int>(columns - column, 0, width);
    const float* from = source + column * column_stride;
    if (depth_stride == 1) {
      TransposeImpl(from, column_stride, filled, depth, packed, width);
    } else {
      for (Int p = 0; p < depth; ++p) {
        const float* row = from + p * depth_stride;
        if (column_stride == 1) std::copy_n(row, filled, packed + p * width);
        for (Int n = 0; column_stride != 1 && n < filled; ++n) {
          packed[p * width + n] = row[n * column_stride];
        }
      }
    }
    for (Int p = 0; p < depth; ++p) {
      std::fill(packed + p * width + filled, packed + (p + 1) * width, 0.0F);
    }
    packed += depth * width;
  }
}

}  // namespace
}  // namespace megafold::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megafold::cpu {

HWY_EXPORT(GemmImpl);
HWY_EXPORT(PackImpl);
HWY_EXPORT(TransposeImpl);

void Gemm(GemmShape shape, GemmLhs a, GemmRhs b, const float* init, std::int64_t init_stride,
          float* c, std::int64_t c_stride, GemmSoon soon) {
  HWY_DYNAMIC_DISPATCH(GemmImpl)(shape, a, b, init, init_stride, c, c_stride, soon);
}

void PackMatrix(const float* source, std::int64_t depth_stride, std::int64_t column_stride,
                std::int64_t depth, std::int64_t columns, float* packed) {
  HWY_DYNAMIC_DISPATCH(PackImpl)(source, depth_stride, column_stride, depth, columns, packed);
}

void Transpose(const float* in, std::int64_t in_stride, std::int64_t rows, std::int64_t columns,
               float* out, std::int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(TransposeImpl)(in, in_stride, rows, columns, out, out_stride);
}

}  // namespace megafold::cpu
#endif  // HWY_ONCE
