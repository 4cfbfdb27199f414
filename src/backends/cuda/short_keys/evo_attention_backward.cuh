// Backward of EvoAttention where a row has at most 128 keys, in one pass: five products and one
// exponential a score. A block walks over the rows of one head; a warp owns 32 keys of the row and
// takes 32 queries at a time:
//   S^T = K Q^T, dP^T = V dO^T        in registers, where they are the A operands of
//   dV += P^T dO, dK += dS^T Q        so that only
//   dQ = dS K                         needs dS of the other warps, through shared memory.
// delta is taken from dO and O, a tile ahead; with few keys, where the rounding of O would show,
// from sums of p and p dp over the warps. dBias stays in registers while the rows that share the
// bias go by.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys/evo_attention_common.cuh"

namespace megafold::cuda {

inline constexpr int kShortWarps = kShortKeys / 32;
inline constexpr int kShortThreads = kShortWarps * 32;
using TileScores = float[2][kShortQueryTile / 8][4];  // 32 keys of 32 queries

template <typename T, int kDim, bool kBias>
struct ShortBackwardLayout {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  // With one tile of queries a row's dS^T takes the place of its V, which has been used by then.
  static constexpr bool kScoresInV = kBias && kDim >= kShortQueryTile;
  static constexpr int kScorePitch = kScoresInV ? kPitch : kTilePitch<T, kShortQueryTile>;
  static constexpr int kKeyBytes = kShortKeys * kPitch * 2;         // K or V
  static constexpr int kQueryBytes = kShortQueryTile * kPitch * 2;  // Q or dO
  static constexpr int kLse = 2 * kQueryBytes;                      // in a stage of queries
  static constexpr int kStage = kLse + kShortQueryTile * 4;
  static constexpr int kScores = 4 * kKeyBytes;  // after two stages of K and V: dS^T
  static constexpr int kSums = kScores + (kScoresInV ? 0 : kShortKeys * kScorePitch * 2);
  static constexpr int kDeltas = kSums + kShortWarps * kShortQueryTile * 8;
  static constexpr int kTerms = kDeltas + kShortWarps * kShortQueryTile * 4;  // of the mask
  static constexpr int kRows = kTerms + kShortKeys * 4;
  static constexpr int kBiasTile = kRows + static_cast<int>(sizeof(RowTable));
  static constexpr int kQueries = kBiasTile + (kBias ? kShortQueryTile * kShortKeys * 4 : 0);
  static constexpr int Bytes(int ahead) { return kQueries + (ahead + 1) * kStage; }
};

// Adds up values of the lanes that differ in `mask`; each keeps one half of them.
template <int kCount>
__device__ __forceinline__ void FoldLanes(float (&v)[8], int mask) {
  const bool upper = (LaneId() & mask) != 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float send = upper ? v[i] : v[i + kCount / 2];
    const float keep = upper ? v[i + kCount / 2] : v[i];
    v[i] = keep + __shfl_xor_sync(0xFFFFFFFFU, send, mask);
  }
}
// Sums of columns over the eight lanes that hold the same ones; a lane is left with one column.
__device__ __forceinline__ float SumOverKeys(float (&columns)[8]) {
  FoldLanes<8>(columns, 16);
  FoldLanes<4>(columns, 8);
  FoldLanes<2>(columns, 4);
  return columns[0];
}
// The query whose sum a lane is left with.
__device__ __forceinline__ int SummedQuery() {
  const int lane = LaneId();
  return lane / 8 * 8 + lane % 4 * 2 + (lane >> 2 & 1);
}

// Turns s into p and leaves the warp's sums of p and p dp in `sums` [queries].
__device__ __forceinline__ void Probabilities(TileScores& s, const TileScores& dp, float scale,
                                              const float* lse, float2* sums) {
  float total[8] = {};
  float weighted[8] = {};
#pragma unroll
  for (int n = 0; n < kShortQueryTile / 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(lse + n * 8 + LaneId() % 4 * 2);
    const float lses[2] = {pair.x * kLog2E, pair.y * kLog2E};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = Exp2(fmaf(s[m][n][i], scale, -lses[i % 2]));
        total[n * 2 + i % 2] += s[m][n][i];
        weighted[n * 2 + i % 2] = fmaf(s[m][n][i], dp[m][n][i], weighted[n * 2 + i % 2]);
      }
    }
  }
  const float p_sum = SumOverKeys(total);
  sums[SummedQuery()] = make_float2(p_sum, SumOverKeys(weighted));
}

// Adds up the warps' sums and turns dp into ds = p (dp - delta). delta is the sum of p dp over that
// of p: with one key p is 1 but for the rounding of lse, and ds should be 0. `deltas` [queries]
// belongs to the warp.
__device__ __forceinline__ void ScoreGradient(const TileScores& p, TileScores& dp,
                                              const float2* sums, float* deltas) {
  const int lane = LaneId();
  float2 sum = {};
#pragma unroll
  for (int warp = 0; warp < kShortWarps; ++warp) {
    const float2 part = sums[warp * kShortQueryTile + lane];
    sum.x += part.x;
    sum.y += part.y;
  }
  deltas[lane] = sum.y * InverseOf(sum.x);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kShortQueryTile / 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(deltas + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        dp[m][n][i] = p[m][n][i] * (dp[m][n][i] - (i % 2 == 0 ? pair.x : pair.y));
    }
  }
}

// dQ of 32 queries from dS^T [128 keys][32 queries] and K, 16 queries x 16 of D at a time.
template <typename T, int kDim, typename Layout>
__device__ __forceinline__ void QueryGradient(const ShortKeysParams& p, int tile, T* dq,
                                              const T* scores, const T* k) {
  const int thread = FreshThread();
  const int lane = thread % 32;
#pragma unroll
  for (int start = 0; start < kDim / 8; start += kShortWarps) {
    const int unit = start + thread / 32;
    if (kDim / 8 % kShortWarps != 0 && unit >= kDim / 8) break;
    const int first = unit % 2 * 16;
    const int column = unit / 2 * 16;
    float c[2][2][4] = {};  // of even and odd steps: two chains of products
#pragma unroll
    for (int key = 0; key < kShortKeys; key += 16) {
      typename Mma<T>::B b0, b1;
      Mma<T>::template LoadBByRow<Layout::kPitch>(b0, b1, k + key * Layout::kPitch + column);
      const typename Mma<T>::A a = Mma<T>::template LoadATransposed<Layout::kScorePitch>(
          scores + key * Layout::kScorePitch + first);
      Mma<T>::Run(c[key / 16 % 2][0], a, b0);
      Mma<T>::Run(c[key / 16 % 2][1], a, b1);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = tile * kShortQueryTile + first + half * 8 + lane / 4;
      T* to = dq + query * p.dq.token;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int d = column + n * 8 + lane % 4 * 2;
        if (query >= p.queries || d >= p.dim) continue;
        *reinterpret_cast<std::uint32_t*>(to + d) =
            Pack((c[0][n][half * 2] + c[1][n][half * 2]) * p.scale,
                 (c[0][n][half * 2 + 1] + c[1][n][half * 2 + 1]) * p.scale, T{});
      }
    }
  }
}

// Calls visit(m, n, i, query, key) for the elements of a warp's fragment.
template <typename Visit>
__device__ __forceinline__ void VisitScores(const Visit& visit) {
  const int thread = FreshThread();
  const int lane = thread % 32;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kShortQueryTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        visit(m, n, i, n * 8 + lane % 4 * 2 + i % 2,
              thread / 32 * 32 + m * 16 + i / 2 * 8 + lane / 4);
      }
    }
  }
}

template <int kDim>
__device__ __forceinline__ void Clear(float (&a)[2][kDim / 8][4], float (&b)[2][kDim / 8][4]) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m][n][i] = b[m][n][i] = 0.0F;
    }
  }
}

// Where a block that has the rows from `begin` to `end` leaves dBias of a group.
__device__ __forceinline__ float* BiasGradientPart(const ShortKeysParams& p, int begin, int end,
                                                   int group) {
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const int team = static_cast<int>(blockIdx.x) / p.heads;
  const std::int64_t elements = static_cast<std::int64_t>(p.queries) * p.keys;
  if (IsWholeGroup(begin, end, p.rows, group)) {
    return p.dbias + (static_cast<std::int64_t>(group) * p.heads + head) * elements;
  }
  return p.dbias_parts + (PartSlot(team, begin, p.rows, group) * p.heads + head) * elements;
}

// With a bias there is one tile of queries.
template <typename T, int kDim, bool kBias>
__global__ __launch_bounds__(kShortThreads, kDim <= 32 ? 3 : 2) void ShortBackwardKernel(
    const __grid_constant__ ShortKeysParams p) {
  using Layout = ShortBackwardLayout<T, kDim, kBias>;
  constexpr int kPitch = Layout::kPitch;
  extern __shared__ __align__(128) char shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = LaneId();
  const int warp_key = thread / 32 * 32;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const auto first_row = static_cast<int>(p.ranges.Begin(static_cast<int>(blockIdx.x) / p.heads));
  const auto last_row = static_cast<int>(p.ranges.End(static_cast<int>(blockIdx.x) / p.heads));
  const int tiles = kBias ? 1 : (p.queries + kShortQueryTile - 1) / kShortQueryTile;
  const int steps = (last_row - first_row) * tiles;

  auto& rows = *reinterpret_cast<RowTable*>(shared + Layout::kRows);
  std::uint32_t mask_bits = 0;
  const auto query_stage = [&](int step) {
    return shared + Layout::kQueries + (step & p.ahead) * Layout::kStage;
  };
  const auto fetch = [&](int step) {
    if (step < steps) {
      const StepPlace next = rows.Copied(step);
      char* stage = query_stage(step);
      const int query = next.tile * kShortQueryTile;
      CopyTile<T, kShortQueryTile, kDim, kShortThreads>(
          stage, rows.Get<const T>(step, RowTable::kQ) + query * p.q.token, p.q.token,
          p.queries - query, p.dim);
      CopyTile<T, kShortQueryTile, kDim, kShortThreads>(
          stage + Layout::kQueryBytes,
          rows.Get<const T>(step, RowTable::kDout) + query * p.dout.token, p.dout.token,
          p.queries - query, p.dim);
      const float* lse = rows.Get<const float>(step, RowTable::kLse) + query;
      if (thread < kShortQueryTile) {
        float* to = reinterpret_cast<float*>(stage + Layout::kLse) + thread;
        if (query + thread < p.queries) {
          CopyAsync4(SharedAddress(to), lse + thread, 4);
        } else {
          *to = kInfinity;
        }
      }
      if (next.tile == 0) {
        char* keys = shared + next.parity * 2 * Layout::kKeyBytes;
        CopyTile<T, kShortKeys, kDim, kShortThreads>(keys, rows.Get<const T>(step, RowTable::kK),
                                                     p.k.token, p.keys, p.dim);
        CopyTile<T, kShortKeys, kDim, kShortThreads>(keys + Layout::kKeyBytes,
                                                     rows.Get<const T>(step, RowTable::kV),
                                                     p.v.token, p.keys, p.dim);
        mask_bits = MaskBitsOf<T>(p, rows.Get<const void>(step, RowTable::kMask), thread);
      }
    }
    CopyAsyncCommit();
  };
  rows.Begin(p, first_row, head, sizeof(T));
  for (int step = 0; step < p.ahead; ++step) {
    __syncthreads();
    fetch(step);
    rows.Advance(p, step, -1, tiles, head, sizeof(T));
  }
  __syncthreads();
  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;
  // A warp has its own keys' terms of the mask.
  float* const terms = reinterpret_cast<float*>(shared + Layout::kTerms);
  // Every thread has its own elements of the bias.
  auto* const bias = reinterpret_cast<float4*>(shared + Layout::kBiasTile) + thread;
  TileScores dbias = {};
  float dk[2][kDim / 8][4], dv[2][kDim / 8][4];
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if constexpr (kBias) {
      const StepPlace now = rows.Copied(step);  // one step ahead, so it is still there
      if (step == 0 || (p.groups > 1 && now.row == 0)) {
        TileScores values;
        ReadShortBias<T>(values, p, now.Group(p), head, inverse_scale, [&](int m, int n, int i) {
          return make_int2(n * 8 + lane % 4 * 2 + i % 2, warp_key + m * 16 + i / 2 * 8 + lane / 4);
        });
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < kShortQueryTile / 8; ++n) {
            bias[(m * 4 + n) * kShortThreads] =
                make_float4(values[m][n][0], values[m][n][1], values[m][n][2], values[m][n][3]);
          }
        }
      }
    }
    if (p.ahead == 1) {
      CopyAsyncWait<0>();
    } else {
      CopyAsyncWait<2>();
    }
    __syncthreads();
    const StepPlace now = rows.Worked(step);
    if (now.tile == 0) {
      terms[thread] = MaskStart<T>(p, mask_bits, thread, inverse_scale);
      __syncwarp();
      if constexpr (!kBias) Clear<kDim>(dk, dv);
    }
    fetch(step + p.ahead);
    rows.Advance(p, step + p.ahead, step, tiles, head, sizeof(T));

    T* k = reinterpret_cast<T*>(shared + now.parity * 2 * Layout::kKeyBytes);
    T* v = k + kShortKeys * kPitch;
    const char* stage = query_stage(step);
    const T* q = reinterpret_cast<const T*>(stage);
    const T* dout = q + kShortQueryTile * kPitch;
    TileScores s;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float top = terms[warp_key + m * 16 + lane / 4];
      const float bottom = terms[warp_key + m * 16 + 8 + lane / 4];
#pragma unroll
      for (int n = 0; n < kShortQueryTile / 8; ++n) {
        float4 start = {};
        if constexpr (kBias) start = bias[(m * 4 + n) * kShortThreads];
        s[m][n][0] = start.x + top;
        s[m][n][1] = start.y + top;
        s[m][n][2] = start.z + bottom;
        s[m][n][3] = start.w + bottom;
      }
    }
    TileScores dp = {};
    MultiplyShared<T, kDim, 2, kShortQueryTile / 8, kPitch>(s, k + warp_key * kPitch, q);
    MultiplyShared<T, kDim, 2, kShortQueryTile / 8, kPitch>(dp, v + warp_key * kPitch, dout);
    auto* const sums = reinterpret_cast<float2*>(shared + Layout::kSums);
    Probabilities(s, dp, scale, reinterpret_cast<const float*>(stage + Layout::kLse),
                  sums + thread / 32 * kShortQueryTile);
    __syncthreads();
    ScoreGradient(
        s, dp, sums,
        reinterpret_cast<float*>(shared + Layout::kDeltas) + thread / 32 * kShortQueryTile);
    if constexpr (kBias) {
      if (p.dbias != nullptr) {
        VisitScores([&](int m, int n, int i, int, int) { dbias[m][n][i] += dp[m][n][i]; });
        if (step + 1 == steps || (p.groups > 1 && now.row + 1 == p.batch_rows)) {
          float* to = BiasGradientPart(p, first_row, last_row, now.Group(p));
          VisitScores([&](int m, int n, int i, int query, int key) {
            if (query < p.queries && key < p.keys) to[query * p.keys + key] = dbias[m][n][i];
            dbias[m][n][i] = 0.0F;
          });
        }
      }
      Clear<kDim>(dk, dv);
    }
    MultiplyScores<T, 2, kShortQueryTile / 8, kDim / 8, kPitch>(dv, s, dout);
    MultiplyScores<T, 2, kShortQueryTile / 8, kDim / 8, kPitch>(dk, dp, q);
    if (now.tile + 1 == tiles) {
      // V's rows of a warp are its own, and it is done with them.
      T* to_dv = rows.Get<T>(step, RowTable::kDv);
      T* to_dk = rows.Get<T>(step, RowTable::kDk);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int key = warp_key + m * 16;
        T* own = v + key * kPitch;
        if (p.dv.data != nullptr) {
          StoreThroughShared<T, kDim>(own, to_dv + key * p.dv.token, p.dv.token, p.keys - key,
                                      p.dim, dv[m], 1.0F, 1.0F);
        }
        if (p.dk.data != nullptr) {
          StoreThroughShared<T, kDim>(own, to_dk + key * p.dk.token, p.dk.token, p.keys - key,
                                      p.dim, dk[m], p.scale, p.scale);
        }
      }
    }
    if (p.dq.data != nullptr) {
      T* scores = Layout::kScoresInV ? v : reinterpret_cast<T*>(shared + Layout::kScores);
      __syncwarp();
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        StoreFragments<T, kShortQueryTile / 8, Layout::kScorePitch>(
            scores + (warp_key + m * 16) * Layout::kScorePitch, dp[m], 1.0F, 1.0F);
      }
      __syncthreads();
      QueryGradient<T, kDim, Layout>(p, now.tile, rows.Get<T>(step, RowTable::kDq), scores, k);
    }
  }
}

template <typename T, int kDim, bool kBias>
void LaunchShortBackward(const ShortKeysParams& p, cudaStream_t stream) {
  LaunchKernel("evo_attention backward (cuda sm80 short)", ShortBackwardKernel<T, kDim, kBias>,
               p.ranges.teams * p.heads, kShortThreads,
               ShortBackwardLayout<T, kDim, kBias>::Bytes(p.ahead), stream, p);
}

}  // namespace megafold::cuda
