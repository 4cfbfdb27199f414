// What the EvoAttention kernels for small grids share.
//
// A block keeps one to three tiles of 16 vectors (queries or keys) of one head and one row. Four
// warps share each tile: the other side passes in rounds, of which each warp takes a quarter, 16
// vectors at a time. All loads of a round are issued before anything is computed, so that a short
// problem waits for memory once. Loops stay loops: a block runs so briefly that straight-line code
// would mostly wait for its instructions.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "backends/cuda/attention/fragment.cuh"
#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/spread/evo_attention_params.h"
#include "backends/cuda/strips/strips.cuh"

namespace megafold::cuda {

inline constexpr int kTileThreads = kSpreadParts * 32;

// Scores of a tile and 16 vectors of the other side.
using SpreadScores = float[1][2][4];

// Where a block and a warp of it work: the grid is tiles x heads x rows. `first` is the warp's
// first vector; `count` of its 16 are inside. `thread` is that of the tile's.
struct SpreadPlace {
  int thread, part, tile, first, count, head;

  __device__ __forceinline__ SpreadPlace(const SpreadParams& p, int block, int length)
      : thread(static_cast<int>(threadIdx.x % kTileThreads)),
        part(thread / 32),
        tile(static_cast<int>(threadIdx.x / kTileThreads)),
        first((block * p.tiles + tile) * 16),
        count(max(0, min(16, length - first))),
        head(static_cast<int>(blockIdx.y)) {}
};

// Row `index` of all rows of all batches, and the group whose bias it uses. 32-bit numbers: there
// are no more rows than the grid has places.
struct SpreadRow {
  unsigned batch, row, group;
  __device__ __forceinline__ SpreadRow(const AttentionProblem& p, unsigned index) {
    const auto rows = static_cast<unsigned>(p.batch_rows);
    batch = rows == 1 ? index : index / rows;
    row = index - batch * rows;
    group = p.groups == 1 ? 0 : batch;
  }
  __device__ __forceinline__ RowIndex At() const { return {batch, row}; }
};

inline LaunchShape SpreadShape(const SpreadParams& p, int blocks, int shared_bytes) {
  return {.blocks = blocks,
          .threads = p.tiles * kTileThreads,
          .shared_bytes = static_cast<std::size_t>(shared_bytes),
          .columns = p.heads,
          .layers = p.batches * p.batch_rows};
}

// Copies `rows` vectors to shared memory, of which `inside` exist; the rest becomes zero. With
// kStripOrder each 16 lie in the order of StripOrder.
template <typename T, int kDim, bool kStripOrder = false>
__device__ __forceinline__ void CopyVectors(T* tile, const T* source, std::int64_t stride, int rows,
                                            int inside, int dim) {
  constexpr int kLanes = std::bit_ceil(kDim / 8U);  // of a vector
  const int column = static_cast<int>(threadIdx.x) % kLanes * 8;
  if (column >= kDim) return;
  int row = static_cast<int>(threadIdx.x) / kLanes;
  int vector = kStripOrder ? StripOrder(row) : row;
  const int pass = static_cast<int>(blockDim.x) / kLanes;
  const T* from = source + vector * stride + column;
  std::uint32_t to = SharedAddress(tile + row * kTilePitch<T, kDim> + column);
#pragma unroll 1
  for (; row < rows; row += pass, vector += pass) {
    CopyAsync16(to, from, vector < inside && column < dim ? 16 : 0);
    from += pass * stride;
    to += pass * kTilePitch<T, kDim> * static_cast<int>(sizeof(T));
  }
}

// ---- The bias of a tile and a round: rows are queries, in the type that it has in memory. ----

__host__ __device__ inline int BiasElementBytes(const AttentionBias& bias) {
  return bias.kind == TermKind::kNone ? 0 : bias.kind == TermKind::kFloat32 ? 4 : 2;
}

// Elements between rows: fragments are read without bank conflicts. A block that keeps queries has
// many keys in a row, one that keeps keys has 16.
__host__ __device__ inline int BiasPitchByQuery(int keys) { return keys + 8; }
__host__ __device__ inline int BiasPitchByKey(int bytes) { return 16 + 16 / bytes; }

// Copies rows x columns (inside of them exist) by the threads of a tile, `lanes` to a row.
__device__ __forceinline__ void CopyBias(char* tile, int pitch, const SpreadParams& p,
                                         std::int64_t offset, int rows, int columns,
                                         int inside_rows, int inside_columns, int lanes,
                                         int thread) {
  const int bytes = BiasElementBytes(p.bias);
  if (bytes == 0) return;
  const char* const source = static_cast<const char*>(p.bias.data) + offset * bytes;
  if (!p.bias.aligned) {
    if (bytes == 4) {
      CopyElements<4>(tile, pitch, rows, columns, source, p.bias.query, p.bias.key, inside_rows,
                      inside_columns, thread, kTileThreads);
    } else {
      CopyElements<2>(tile, pitch, rows, columns, source, p.bias.query, p.bias.key, inside_rows,
                      inside_columns, thread, kTileThreads);
    }
    return;
  }
  const int pass = kTileThreads / lanes;
  const int begin = thread % lanes * 16;  // bytes
  int row = thread / lanes;
  const char* from = source + row * p.bias.query * bytes + begin;
  std::uint32_t to = SharedAddress(tile) + row * pitch * bytes + begin;
  const int width = columns * bytes - begin;
  const int inside = inside_columns * bytes - begin;
#pragma unroll 1
  for (; row < rows; row += pass) {
    const int valid = row < inside_rows ? inside : 0;
#pragma unroll 1
    for (int at = 0; at < width; at += lanes * 16) {
      CopyAsync16(to + at, from + at, max(0, min(16, valid - at)));
    }
    from += pass * p.bias.query * bytes;
    to += pass * pitch * bytes;
  }
}

// x = scale s + bias where fragment rows are queries; `tile` begins at the 16 keys.
template <typename T>
__device__ __forceinline__ void AddBiasByQuery(SpreadScores& s, const SpreadParams& p,
                                               const char* tile, int pitch) {
  const auto add = [&](const auto* from) {
    from += LaneId() / 4 * pitch + LaneId() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // i / 2 is the key's half, i % 2 the query's
      const float2 pair = ReadPair(from + i % 2 * 8 * pitch + i / 2 * 8);
      float* const x = &s[0][i / 2][i % 2 * 2];
      x[0] = fmaf(x[0], p.scale, pair.x);
      x[1] = fmaf(x[1], p.scale, pair.y);
    }
  };
  if (p.bias.kind == TermKind::kFloat32) {
    add(reinterpret_cast<const float*>(tile));
  } else if (p.bias.kind == TermKind::kStorage) {
    add(reinterpret_cast<const T*>(tile));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) s[0][i / 4][i % 4] *= p.scale;
  }
}

// The same where fragment rows are keys; `tile` begins at the 16 queries.
template <typename T>
__device__ __forceinline__ void AddBiasByKey(SpreadScores& s, const SpreadParams& p,
                                             const char* tile) {
  const auto add = [&](const auto* from) {
    const int pitch = BiasPitchByKey(sizeof(*from));
    from += LaneId() % 4 * 2 * pitch + LaneId() / 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = s[0][i / 4][i % 4];
      x = fmaf(x, p.scale, static_cast<float>(from[(i / 4 * 8 + i % 2) * pitch + i % 4 / 2 * 8]));
    }
  };
  if (p.bias.kind == TermKind::kFloat32) {
    add(reinterpret_cast<const float*>(tile));
  } else if (p.bias.kind == TermKind::kStorage) {
    add(reinterpret_cast<const T*>(tile));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) s[0][i / 4][i % 4] *= p.scale;
  }
}

__device__ __forceinline__ std::int64_t BiasOffset(const AttentionBias& bias, unsigned group,
                                                   int head, int query, int key) {
  return group * bias.group + head * bias.head + query * bias.query + key * bias.key;
}

// ---- A round of keys, for blocks that keep queries. ----

template <typename T, int kDim>
struct KeyRound {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  T *k, *v;
  float* terms;    // what the mask adds; -inf past the last key
  bool masked;     // whether any of them can differ from 0
  char* bias;      // of the warp's tile
  int bias_pitch;  // elements

  __device__ __forceinline__ KeyRound(char* shared, const SpreadParams& p, int tile) {
    const int all = kSpreadParts * p.key_side.step;
    k = reinterpret_cast<T*>(shared);
    v = k + all * kPitch;
    terms = reinterpret_cast<float*>(v + all * kPitch);
    bias_pitch = BiasPitchByQuery(all);
    bias = reinterpret_cast<char*>(terms + all) + tile * 16 * bias_pitch * BiasElementBytes(p.bias);
  }
  static int Bytes(const SpreadParams& p) {
    const int all = kSpreadParts * p.key_side.step;
    return all * (2 * kPitch * static_cast<int>(sizeof(T)) + 4) +
           p.tiles * 16 * BiasPitchByQuery(all) * BiasElementBytes(p.bias);
  }

  // Loads a round; ends with all of it there.
  __device__ __forceinline__ void Load(const SpreadParams& p, const SpreadRow& row,
                                       const SpreadPlace& place, int round) {
    const RowIndex at = row.At();
    const int all = kSpreadParts * p.key_side.step;
    const int start = round * all;
    const int keys = p.keys - start;
    CopyBias(bias, bias_pitch, p, BiasOffset(p.bias, row.group, place.head, place.first, start), 16,
             all, place.count, keys, 32, place.thread);
    CopyVectors<T, kDim>(k, RowBase<const T>(p.k, at, place.head) + start * p.k.token, p.k.token,
                         all, keys, p.dim);
    CopyVectors<T, kDim>(v, RowBase<const T>(p.v, at, place.head) + start * p.v.token, p.v.token,
                         all, keys, p.dim);
    CopyAsyncCommit();
    masked = p.mask.kind != TermKind::kNone || keys < all;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
      terms[i] = MaskTerm<T>(p, MaskBase(p, at), start + i);
    }
    CopyAsyncWait<0>();
    __syncthreads();
  }

  // Scores of the tile's queries and the round's 16 keys from `key` on.
  __device__ __forceinline__ void Scores(SpreadScores& s, const SpreadParams& p,
                                         const typename Mma<T>::A (&q)[1][kDim / 16],
                                         int key) const {
    MultiplyByRows<T, 1, kDim / 16, 2, kPitch>(s, q, k + key * kPitch);
    AddBiasByQuery<T>(s, p, bias + key * BiasElementBytes(p.bias), bias_pitch);
    if (masked) AddColumnTerm(s, terms + key);
  }
};

// e^(x - m). Subtracting first keeps scores near the largest float apart from infinity.
__device__ __forceinline__ float SpreadExp(float x, float m) { return Exp2((x - m) * kLog2E); }

// ---- Sums of a tile over its parts, through shared memory, in the order of the parts. ----

struct PartFactors {
  float part[kSpreadParts];
};

template <int kDim>
struct PartSums {
  static constexpr int kPitch = kDim + 8;  // without bank conflicts
  float* region;                           // [tiles][parts][16][kPitch]

  __device__ __forceinline__ explicit PartSums(char* shared)
      : region(reinterpret_cast<float*>(shared)) {}
  __host__ __device__ static constexpr int Bytes(int tiles) {
    return tiles * kSpreadParts * 16 * kPitch * 4;
  }

  __device__ __forceinline__ void Put(const SpreadPlace& place, const float (&c)[1][kDim / 8][4]) {
    float* to = region + ((place.tile * kSpreadParts + place.part) * 16 + LaneId() / 4) * kPitch +
                LaneId() % 4 * 2;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(to + n * 8) = make_float2(c[0][n][0], c[0][n][1]);
      *reinterpret_cast<float2*>(to + 8 * kPitch + n * 8) = make_float2(c[0][n][2], c[0][n][3]);
    }
  }
  // Stores the tile's vectors at `to`; factors(row, first) gives what each part is multiplied by,
  // `first` for one thread of a row.
  template <typename T, typename Factors>
  __device__ __forceinline__ void Store(const SpreadPlace& place, T* to, std::int64_t stride,
                                        int dim, const Factors& factors) const {
    constexpr int kQuads = kDim / 4;
    const float* from = region + place.tile * kSpreadParts * 16 * kPitch;
#pragma unroll 1
    for (int quad = place.thread; quad < 16 * kQuads; quad += kTileThreads) {
      const int row = quad / kQuads;
      const int column = quad % kQuads * 4;
      if (row >= place.count || column >= dim) continue;
      const auto times = factors(row, column == 0);
      float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
      for (int part = 0; part < kSpreadParts; ++part) {
        const float4 value =
            *reinterpret_cast<const float4*>(from + (part * 16 + row) * kPitch + column);
        sum.x = fmaf(value.x, times.part[part], sum.x);
        sum.y = fmaf(value.y, times.part[part], sum.y);
        sum.z = fmaf(value.z, times.part[part], sum.z);
        sum.w = fmaf(value.w, times.part[part], sum.w);
      }
      *reinterpret_cast<uint2*>(to + row * stride + column) =
          make_uint2(Pack(sum.x, sum.y, T{}), Pack(sum.z, sum.w, T{}));
    }
  }
};

}  // namespace megafold::cuda
