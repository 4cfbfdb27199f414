// dBias of EvoAttention with mma.sync: a block owns a tile of queries and keys of one head, keeps its
// bias and its gradient in registers and walks over the rows that share the bias, or over a part of them;
// the parts are added afterwards in a fixed order.
#pragma once

#include <type_traits>

#include "backends/cuda/sm80/evo_attention_backward.cuh"

namespace megafold::cuda {

template <typename T, int kDim>
struct BiasGradientLayout {
  static constexpr BiasGradientTiling kTiling = BiasTiling(sizeof(T), kDim);
  static constexpr int kPitch = kTilePitch<T, kDim>;
  static constexpr int kVector = kPitch * static_cast<int>(sizeof(T));
  static constexpr int kQ = 0;
  static constexpr int kDout = kTiling.MBlock() * kVector;
  static constexpr int kK = 2 * kDout;
  static constexpr int kV = kK + kTiling.NBlock() * kVector;
  static constexpr int kMask = kV + kTiling.NBlock() * kVector;
  static constexpr int kBytes = kMask + kTiling.NBlock() * 4;
};

// The bias of a warp's fragment; zero outside the tensor.
template <typename T, int kMTiles, int kNTiles>
__device__ __forceinline__ void ReadBias(float (&b)[kMTiles][kNTiles][4], const AttentionParams& p,
                                         std::int64_t group, int head, int query, int key) {
  const AttentionBias& bias = p.bias;
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at_query = query + m * 16 + i / 2 * 8 + lane / 4;
        const int at_key = key + n * 8 + lane % 4 * 2 + i % 2;
        b[m][n][i] = 0.0F;
        if (at_query >= p.queries || at_key >= p.keys) continue;
        const std::int64_t offset = group * bias.group + head * bias.head + at_query * bias.query +
                                    at_key * bias.key;
        b[m][n][i] = bias.kind == TermKind::kFloat32
                         ? static_cast<const float*>(bias.data)[offset]
                         : static_cast<float>(static_cast<const T*>(bias.data)[offset]);
      }
    }
  }
}

template <typename T, int kDim>
__global__ __launch_bounds__(BiasTiling(sizeof(T), kDim).Threads(),
                             BiasTiling(sizeof(T), kDim).min_blocks)
    void AttentionBiasGradientKernel(const __grid_constant__ AttentionParams p) {
  using Layout = BiasGradientLayout<T, kDim>;
  constexpr BiasGradientTiling kTiling = BiasTiling(sizeof(T), kDim);
  constexpr int kMTiles = kTiling.m_tiles;
  constexpr int kNTiles = kTiling.n_tiles;
  constexpr int kKTiles = kDim / 16;
  constexpr int kPitch = Layout::kPitch;
  extern __shared__ __align__(128) char shared[];

  const int query_tiles = (p.queries + kTiling.MBlock() - 1) / kTiling.MBlock();
  const int key_tiles = (p.keys + kTiling.NBlock() - 1) / kTiling.NBlock();
  std::int64_t block = blockIdx.x;
  const int key_tile = static_cast<int>(block % key_tiles) * kTiling.NBlock();
  block /= key_tiles;
  const int query_tile = static_cast<int>(block % query_tiles) * kTiling.MBlock();
  block /= query_tiles;
  const int head = static_cast<int>(block % p.heads);
  block /= p.heads;
  const std::int64_t group = block % p.groups;
  const std::int64_t chunk = block / p.groups;
  const std::int64_t first_row = p.rows * chunk / p.row_chunks;
  const std::int64_t last_row = p.rows * (chunk + 1) / p.row_chunks;

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_query = warp % kTiling.m_warps * kMTiles * 16;
  const int warp_key = warp / kTiling.m_warps * kNTiles * 8;
  float bias[kMTiles][kNTiles][4];
  ReadBias<T>(bias, p, group, head, query_tile + warp_query, key_tile + warp_key);
  float gradient[kMTiles][kNTiles][4] = {};

  auto fetch = [&](std::int64_t row) {
    char* stage = shared + (kTiling.stages == 2 ? (row & 1) * Layout::kBytes : 0);
    const RowIndex at(p, group, row);
    auto load = [&](int offset, const AttentionOperand& operand, auto rows, int start, int length) {
      LoadTile<T, decltype(rows)::value, kDim, kTiling.Threads()>(
          reinterpret_cast<T*>(stage + offset),
          RowBase<const T>(operand, at, head) + start * operand.token, operand.token, length - start,
          p.dim, operand.aligned);
    };
    const std::integral_constant<int, kTiling.MBlock()> queries;
    const std::integral_constant<int, kTiling.NBlock()> keys;
    load(Layout::kQ, p.q, queries, query_tile, p.queries);
    load(Layout::kDout, p.dout, queries, query_tile, p.queries);
    load(Layout::kK, p.k, keys, key_tile, p.keys);
    load(Layout::kV, p.v, keys, key_tile, p.keys);
    auto* mask = reinterpret_cast<float*>(stage + Layout::kMask);
    for (int key = static_cast<int>(threadIdx.x); key < kTiling.NBlock(); key += kTiling.Threads()) {
      mask[key] = MaskTerm<T>(p, at, key_tile + key);
    }
    CopyAsyncCommit();
  };

  if (kTiling.stages == 2 && first_row < last_row) fetch(first_row);
  for (std::int64_t row = first_row; row < last_row; ++row) {
    if (kTiling.stages == 1) {
      __syncthreads();
      fetch(row);
    }
    CopyAsyncWait<0>();
    __syncthreads();
    if (kTiling.stages == 2 && row + 1 < last_row) fetch(row + 1);
    const char* stage = shared + (kTiling.stages == 2 ? (row & 1) * Layout::kBytes : 0);
    const T* q = reinterpret_cast<const T*>(stage + Layout::kQ) + warp_query * kPitch;
    const T* dout = reinterpret_cast<const T*>(stage + Layout::kDout) + warp_query * kPitch;
    const T* k = reinterpret_cast<const T*>(stage + Layout::kK) + warp_key * kPitch;
    const T* v = reinterpret_cast<const T*>(stage + Layout::kV) + warp_key * kPitch;
    const float* mask = reinterpret_cast<const float*>(stage + Layout::kMask) + warp_key;

    const RowIndex at(p, group, row);
    const std::int64_t statistic = StatisticBase(p, at, head);
    float shift[kMTiles][2], delta[kMTiles][2];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = query_tile + warp_query + m * 16 + half * 8 + LaneId() / 4;
        const bool inside = query < p.queries;
        shift[m][half] = inside ? -p.lse[statistic + query] * kLog2E : -kInfinity;
        delta[m][half] = inside ? p.delta[statistic + query] : 0.0F;
      }
    }
    float s[kMTiles][kNTiles][4] = {};
    float dp[kMTiles][kNTiles][4] = {};
    auto multiply = [&](float(&c)[kMTiles][kNTiles][4], const T* a_tile, const T* b_tile) {
#pragma unroll
      for (int depth = 0; depth < kKTiles; ++depth) {
        typename Mma<T>::A a[kMTiles][1];
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          a[m][0] = Mma<T>::template LoadA<kPitch>(a_tile + m * 16 * kPitch + depth * 16);
        }
        MultiplyByRows<T, kMTiles, 1, kNTiles, kPitch>(c, a, b_tile + depth * 16);
      }
    };
    multiply(s, q, k);
    multiply(dp, dout, v);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = fmaf(s[m][n][i], p.scale, bias[m][n][i]);
      }
    }
    if (AnyTerm<kNTiles * 8>(mask)) AddColumnTerm(s, mask);
    ScoreGradientByQuery(s, dp, shift, delta);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) gradient[m][n][i] += dp[m][n][i];
      }
    }
  }

  const int query = query_tile + warp_query;
  const int key = key_tile + warp_key;
  float* to = p.dbias + (((chunk * p.groups + group) * p.heads + head) * p.queries + query) * p.keys + key;
  // Columns may end on an odd count, so single elements are stored.
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = m * 16 + i / 2 * 8 + lane / 4;
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        if (query + row < p.queries && key + column < p.keys) {
          to[static_cast<std::int64_t>(row) * p.keys + column] = gradient[m][n][i];
        }
      }
    }
  }
}

template <typename T, int kDim>
void LaunchBiasGradient(const AttentionParams& p, cudaStream_t stream) {
  constexpr BiasGradientTiling kTiling = BiasTiling(sizeof(T), kDim);
  const std::int64_t query_tiles = (p.queries + kTiling.MBlock() - 1) / kTiling.MBlock();
  const std::int64_t key_tiles = (p.keys + kTiling.NBlock() - 1) / kTiling.NBlock();
  LaunchKernel("evo_attention backward dBias (cuda sm80)", AttentionBiasGradientKernel<T, kDim>,
               query_tiles * key_tiles * p.heads * p.groups * p.row_chunks, kTiling.Threads(),
               kTiling.stages * BiasGradientLayout<T, kDim>::kBytes, stream, p);
}

}  // namespace megafold::cuda
