#include "backends/cpu/triangle_multiplication_pieces.h"

#include "backends/cpu/half.h"

namespace megafold::cpu::triangle {
namespace {

void* Offset(void* data, DType dtype, std::int64_t elements) {
  return static_cast<unsigned char*>(data) + elements * static_cast<std::int64_t>(SizeOf(dtype));
}

Block TileRows(Block block, std::int64_t slow, std::int64_t rows) {
  block.data += slow * kTileFast * block.stride;
  block.rows = rows;
  return block;
}

// Calls visit(rows of the block, the pairs they belong to) for lines of the tile that cover it,
// each along the index that is nearer in memory.
template <typename Visit>
void ForEachLine(Pairs pairs, Tile tile, Block block, Visit visit) {
  const auto at = [&](std::int64_t s, std::int64_t f, std::int64_t stride) {
    const std::int64_t offset =
        (tile.slow + s) * pairs.slow_stride + (tile.fast + f) * pairs.fast_stride;
    return StoredRows{Offset(pairs.data, pairs.dtype, offset), pairs.dtype, stride};
  };
  if (pairs.fast_stride <= pairs.slow_stride) {
    for (std::int64_t s = 0; s < tile.slow_count; ++s) {
      visit(TileRows(block, s, tile.fast_count), at(s, 0, pairs.fast_stride));
    }
    return;
  }
  for (std::int64_t f = 0; f < tile.fast_count; ++f) {
    const Block line{block.data + f * block.stride, tile.slow_count, block.columns,
                     kTileFast * block.stride};
    visit(line, at(0, f, pairs.slow_stride));
  }
}

// Clears the rows of the tile's pairs beyond the last fast index.
void ClearMissing(Tile tile, Block block) {
  for (std::int64_t s = 0; s < tile.slow_count; ++s) {
    const Block rows = TileRows(block, s, kTileFast);
    for (std::int64_t f = tile.fast_count; f < kTileFast; ++f) {
      std::fill_n(rows.data + f * rows.stride, PadColumns(rows.columns), 0.0F);
    }
  }
}

float MaskElement(const TensorView& mask, std::int64_t offset) {
  switch (mask.dtype) {
    case DType::kBool:
      return mask.ptr<std::uint8_t>()[offset] != 0 ? 1.0F : 0.0F;
    case DType::kBFloat16:
      return FromBFloat16(mask.ptr<std::uint16_t>()[offset]);
    case DType::kFloat16:
      return FromFloat16(mask.ptr<std::uint16_t>()[offset]);
    default:
      return mask.ptr<float>()[offset];
  }
}

}  // namespace

Pairs PairsOf(const TensorView& tensor, std::int64_t batch, bool transposed) {
  return {Offset(tensor.data, tensor.dtype, batch * tensor.stride(0)), tensor.dtype,
          tensor.stride(transposed ? 2 : 1), tensor.stride(transposed ? 1 : 2)};
}

Pairs ColumnsFrom(Pairs pairs, std::int64_t column) {
  pairs.data = Offset(pairs.data, pairs.dtype, column);
  return pairs;
}

void LoadTile(Pairs from, Tile tile, Block to) {
  ForEachLine(from, tile, to, [](Block rows, StoredRows stored) { LoadRows(stored, rows); });
  ClearMissing(tile, to);
}

void StoreTile(Block from, Tile tile, Pairs to) {
  ForEachLine(to, tile, from, [](Block rows, StoredRows stored) { StoreRows(rows, stored); });
}

void LoadMask(const TensorView& mask, std::int64_t batch, bool transposed, Tile tile,
              float* factor) {
  std::fill_n(factor, kTileRows, 0.0F);
  for (std::int64_t s = 0; s < tile.slow_count; ++s) {
    for (std::int64_t f = 0; f < tile.fast_count; ++f) {
      const std::int64_t slow = tile.slow + s;
      const std::int64_t fast = tile.fast + f;
      factor[s * kTileFast + f] =
          mask.defined()
              ? MaskElement(mask, batch * mask.stride(0) + slow * mask.stride(transposed ? 2 : 1) +
                                      fast * mask.stride(transposed ? 1 : 2))
              : 1.0F;
    }
  }
}

Planes NewPlanes(Arena& arena, std::int64_t channels, std::int64_t length) {
  const std::int64_t stride = PadColumns(length) + kColumnPadding;
  return {arena.Floats(channels * length * stride), stride, length * stride};
}

void StorePlanes(Block from, Tile tile, Planes to, std::int64_t channel) {
  for (std::int64_t s = 0; s < tile.slow_count; ++s) {
    Transpose(from.data + s * kTileFast * from.stride, from.stride, kTileFast, from.columns,
              to.Channel(channel) + (tile.slow + s) * to.stride + tile.fast, to.plane);
  }
}

void LoadPlanes(Planes from, Tile tile, std::int64_t channel, Block to) {
  for (std::int64_t s = 0; s < tile.slow_count; ++s) {
    Transpose(from.Channel(channel) + (tile.slow + s) * from.stride + tile.fast, from.plane,
              to.columns, tile.fast_count, to.data + s * kTileFast * to.stride, to.stride);
  }
  ClearMissing(tile, to);
}

void LoadGroup(const ops::TriangleMultiplicationParams& params, const Dims& dims,
               std::int64_t group, Block to) {
  std::fill_n(to.data, to.rows * to.stride, 0.0F);
  const TensorView* weights[] = {&params.wag, &params.wap, &params.wbg, &params.wbp};
  for (int projection = kGateA; projection <= kValueB; ++projection) {
    Block part = to;
    part.data += projection * dims.group_width() * to.stride;
    part.rows = dims.group_size(group);
    LoadRows(RowsOf(*weights[projection], dims.group_begin(group)), part);
  }
}

}  // namespace megafold::cpu::triangle
