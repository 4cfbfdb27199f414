// Gradients of EvoAttention's backward in tiles that several blocks give a part of: how the parts
// lie in workspace, and their sum.
#pragma once

#include <cstdint>

#include "backends/cuda/tiles/evo_attention_copies.cuh"

namespace megafold::cuda {

// Where a thread's first four numbers of a tile of a part lie, in vectors of four; the next ones
// follow 32 later. A tile has its numbers in the order of the threads that give them. `count` are a
// head's vectors.
template <int kDim>
__device__ __forceinline__ std::int64_t TilePartOffset(const AttentionProblem& p, unsigned part,
                                                       const SpreadRow& row, int head, int count,
                                                       int tile) {
  const auto rows = static_cast<unsigned>(p.batches * p.batch_rows);
  const unsigned at_row = part * rows + row.batch * static_cast<unsigned>(p.batch_rows) + row.row;
  return (static_cast<std::int64_t>(at_row * p.heads + head) * CountScoreTiles(count) + tile) *
             (kDim / 16 * kScoreThreads) +
         threadIdx.x / 32 * (kDim / 16 * 32) + LaneId();
}

// A gradient that may lie in parts.
struct TileParts {
  const AttentionOperand& to;
  const float* parts;
  int count, vectors;  // of parts; of a head
  float scale;
  bool strip_order;

  __host__ __device__ int Blocks(int each) const {
    return parts == nullptr ? 0 : CountScoreTiles(vectors) * each;
  }
};
struct AllTileParts {
  TileParts dq, dk, dv;
  __host__ __device__ explicit AllTileParts(const TileParams& p)
      : dq{p.dq, p.dq_parts, CountScoreTiles(p.keys), p.queries, p.scale, false},
        dk{p.dk, p.dk_parts, p.QueryParts(), p.keys, p.scale, true},
        dv{p.dv, p.dv_parts, p.QueryParts(), p.keys, 1.0F, true} {}
};

// `scale` times the sum of the parts, in their order. A block has some columns of a tile, and a
// thread what one of the threads that made the parts had of them.
template <typename T, int kDim>
__device__ __forceinline__ void SumTileParts(const TileParams& p, const TileParts& mine,
                                             int block) {
  constexpr int kEach = kDim / 16;  // of a thread
  const int tile = block / kEach, n = block % kEach;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int column = warp / 4 * (kDim / 2) + n * 8 + LaneId() % 4 * 2;
  if (column >= p.dim || mine.to.data == nullptr) return;
  const SpreadRow row(p, blockIdx.z);
  const int head = static_cast<int>(blockIdx.y);
  const auto offset = [&](unsigned part) {
    return TilePartOffset<kDim>(p, part, row, head, mine.vectors, tile);
  };
  const auto* from = reinterpret_cast<const float4*>(mine.parts) + offset(0) + n * 32;
  const std::int64_t step = offset(1) - offset(0);
  constexpr int kBatch = 6;  // parts that are on their way together
  float sum[4] = {};
#pragma unroll 1
  for (int first = 0; first < mine.count; first += kBatch, from += kBatch * step) {
    float4 x[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      x[i] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      if (first + i < mine.count) x[i] = __ldcg(from + i * step);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      sum[0] += x[i].x;
      sum[1] += x[i].y;
      sum[2] += x[i].z;
      sum[3] += x[i].w;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int place = half * 8 + LaneId() / 4;
    const int vector =
        tile * kScoreTile + warp % 4 * 16 + (mine.strip_order ? StripOrder(place) : place);
    if (vector >= mine.vectors) continue;
    StorePair(RowBase<T>(mine.to, row.At(), head) + vector * mine.to.token + column,
              sum[half * 2] * mine.scale, sum[half * 2 + 1] * mine.scale, true);
  }
}

template <typename T, int kDim>
__global__ __launch_bounds__(kScoreThreads) void TilePartsKernel(
    const __grid_constant__ TileParams p) {
  constexpr int kEach = kDim / 16;
  const AllTileParts all(p);
  const int block = static_cast<int>(blockIdx.x), keys = block - all.dq.Blocks(kEach);
  if (keys < 0) {
    SumTileParts<T, kDim>(p, all.dq, block);
  } else if (keys < all.dk.Blocks(kEach)) {
    SumTileParts<T, kDim>(p, all.dk, keys);
  } else {
    SumTileParts<T, kDim>(p, all.dv, keys - all.dk.Blocks(kEach));
  }
}

}  // namespace megafold::cuda
