// Backward of EvoAttention where a row has at most 128 keys, in one pass: five products and one
// exponential a score. A block walks over the rows of one head; a warp owns 32 keys of the row and
// takes 32 queries at a time:
//   S^T = K Q^T, dP^T = V dO^T        in registers, where they are the A operands of
//   dV += P^T dO, dK += dS^T Q        so that only
//   dQ = dS K                         needs dS of the other warps, through shared memory.
// Sums over the keys of a query (of p and of p dp, for delta) go through shared memory too. dBias
// stays in registers while the rows that share the bias go by.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys/evo_attention_common.cuh"

namespace megafold::cuda {

inline constexpr int kShortWarps = kShortKeys / 32;
inline constexpr int kShortThreads = kShortWarps * 32;
using TileScores = float[2][kShortQueryTile / 8][4];  // 32 keys of 32 queries

template <typename T, int kDim>
struct ShortBackwardLayout {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  static constexpr int kScorePitch = kTilePitch<T, kShortQueryTile>;
  static constexpr int kKeyBytes = kShortKeys * kPitch * 2;         // K or V
  static constexpr int kQueryBytes = kShortQueryTile * kPitch * 2;  // Q or dO
  static constexpr int kLse = 2 * kQueryBytes;                      // in a stage of queries
  static constexpr int kStage = kLse + kShortQueryTile * 4;
  static constexpr int kScores = 4 * kKeyBytes;  // after two stages of K and V: dS^T
  static constexpr int kSums = kScores + kShortKeys * kScorePitch * 2;
  static constexpr int kFactors = kSums + kShortWarps * kShortQueryTile * 8;
  static constexpr int kQueries = kFactors + kShortWarps * kShortQueryTile * 8;
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

// Turns s into p, up to a factor of each query that is 1 but for the rounding of lse, and leaves
// the warp's sums of p and p dp in `sums` [queries].
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

// Adds up the warps' sums and turns p into probabilities that add up to 1 and dp into
// ds = p (dp - sum of p dp). `factors` [queries] belongs to the warp.
__device__ __forceinline__ void ScoreGradient(TileScores& p, TileScores& dp, const float2* sums,
                                              float2* factors) {
  constexpr float kRounding = 1e-4F;
  const int lane = LaneId();
  float total = 0.0F;
  float weighted = 0.0F;
#pragma unroll
  for (int warp = 0; warp < kShortWarps; ++warp) {
    const float2 part = sums[warp * kShortQueryTile + lane];
    total += part.x;
    weighted += part.y;
  }
  const float inverse = total > 0.0F ? 1.0F / total : 0.0F;
  factors[lane] = make_float2(inverse, weighted * inverse * inverse);
  // lse of a large score is rounded so coarsely that dV would see it.
  const bool far = __any_sync(0xFFFFFFFFU, total > 0.0F && fabsf(total - 1.0F) > kRounding);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kShortQueryTile / 8; ++n) {
    const float4 pair = *reinterpret_cast<const float4*>(factors + n * 8 + lane % 4 * 2);
    const float inverses[2] = {pair.x, pair.z};
    const float deltas[2] = {pair.y, pair.w};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        dp[m][n][i] = p[m][n][i] * fmaf(dp[m][n][i], inverses[i % 2], -deltas[i % 2]);
      }
      if (!far) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) p[m][n][i] *= inverses[i % 2];
    }
  }
}

// dQ of 32 queries from dS^T [128 keys][32 queries] and K, 16 queries x 16 of D at a time.
template <typename T, int kDim>
__device__ __forceinline__ void QueryGradient(const ShortKeysParams& p, int tile, T* dq,
                                              const T* scores, const T* k) {
  using Layout = ShortBackwardLayout<T, kDim>;
  const int lane = LaneId();
  for (int unit = static_cast<int>(threadIdx.x) / 32; unit < kDim / 8; unit += kShortWarps) {
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
  const int lane = LaneId();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kShortQueryTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        visit(m, n, i, n * 8 + lane % 4 * 2 + i % 2,
              static_cast<int>(threadIdx.x) / 32 * 32 + m * 16 + i / 2 * 8 + lane / 4);
      }
    }
  }
}

// With a bias there is one tile of queries.
template <typename T, int kDim, bool kBias>
__global__ __launch_bounds__(kShortThreads, kDim <= 32 ? 3 : 2) void ShortBackwardKernel(
    const __grid_constant__ ShortKeysParams p) {
  using Layout = ShortBackwardLayout<T, kDim>;
  constexpr int kPitch = Layout::kPitch;
  extern __shared__ __align__(128) char shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = LaneId();
  const int warp_key = thread / 32 * 32;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const std::int64_t team = static_cast<int>(blockIdx.x) / p.heads;
  const std::int64_t first_row = p.ranges.Begin(team);
  const int tiles = kBias ? 1 : (p.queries + kShortQueryTile - 1) / kShortQueryTile;
  const std::int64_t steps = (p.ranges.End(team) - first_row) * tiles;

  StepCursor next(first_row, p.batch_rows);
  RowPointers rows(p, next.at, head, sizeof(T));
  std::uint32_t mask_bits = 0;
  const auto query_stage = [&](std::int64_t step) {
    return shared + Layout::kQueries + (static_cast<int>(step) & p.ahead) * Layout::kStage;
  };
  const auto fetch = [&](std::int64_t step) {
    if (step < steps) {
      char* stage = query_stage(step);
      const int query = next.tile * kShortQueryTile;
      CopyTile<T, kShortQueryTile, kDim, kShortThreads>(
          stage, rows.Get<const T>(RowPointers::kQ) + query * p.q.token, p.q.token,
          p.queries - query, p.dim);
      CopyTile<T, kShortQueryTile, kDim, kShortThreads>(
          stage + Layout::kQueryBytes, rows.Get<const T>(RowPointers::kDout) + query * p.dout.token,
          p.dout.token, p.queries - query, p.dim);
      const float* lse = rows.Get<const float>(RowPointers::kLse) + query;
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
        CopyTile<T, kShortKeys, kDim, kShortThreads>(keys, rows.Get<const T>(RowPointers::kK),
                                                     p.k.token, p.keys, p.dim);
        CopyTile<T, kShortKeys, kDim, kShortThreads>(
            keys + Layout::kKeyBytes, rows.Get<const T>(RowPointers::kV), p.v.token, p.keys, p.dim);
        mask_bits = MaskBitsOf<T>(p, rows.Get<const void>(RowPointers::kMask), thread);
      }
      rows.Advance(p, next, tiles, false);
    }
    CopyAsyncCommit();
  };

  StepCursor now = next;
  for (int step = 0; step < p.ahead; ++step) fetch(step);
  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;
  float mask[4];  // of a lane's keys
  TileScores bias;
  TileScores dbias = {};
  float dk[2][kDim / 8][4], dv[2][kDim / 8][4];
#pragma unroll 1
  for (std::int64_t step = 0; step < steps; ++step, rows.Advance(p, now, tiles, true)) {
    if constexpr (kBias) {
      if (step == 0 || (p.groups > 1 && now.at.row == 0)) {
        const std::int64_t base = now.Group(p) * p.bias.group + head * p.bias.head;
        VisitScores([&](int m, int n, int i, int query, int key) {
          bias[m][n][i] = BiasStart<T>(p, base, query, key, inverse_scale);
        });
      }
    }
    if (p.ahead == 1) {
      CopyAsyncWait<0>();
    } else {
      CopyAsyncWait<2>();
    }
    __syncthreads();
    if (now.tile == 0) {
      const float mine = MaskStart<T>(p, mask_bits, thread, inverse_scale);
#pragma unroll
      for (int i = 0; i < 4; ++i) mask[i] = __shfl_sync(0xFFFFFFFFU, mine, i * 8 + lane / 4);
      if constexpr (!kBias) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) dk[m][n][i] = dv[m][n][i] = 0.0F;
          }
        }
      }
    }
    fetch(step + p.ahead);

    T* k = reinterpret_cast<T*>(shared + now.parity * 2 * Layout::kKeyBytes);
    T* v = k + kShortKeys * kPitch;
    const char* stage = query_stage(step);
    const T* q = reinterpret_cast<const T*>(stage);
    const T* dout = q + kShortQueryTile * kPitch;
    auto* sums = reinterpret_cast<float2*>(shared + Layout::kSums);
    auto* factors = reinterpret_cast<float2*>(shared + Layout::kFactors);
    TileScores s;
    VisitScores([&](int m, int n, int i, int, int) {
      s[m][n][i] = mask[m * 2 + i / 2];
      if constexpr (kBias) s[m][n][i] += bias[m][n][i];
    });
    TileScores dp = {};
    MultiplyShared<T, kDim, 2, kShortQueryTile / 8, kPitch>(s, k + warp_key * kPitch, q);
    MultiplyShared<T, kDim, 2, kShortQueryTile / 8, kPitch>(dp, v + warp_key * kPitch, dout);
    Probabilities(s, dp, scale, reinterpret_cast<const float*>(stage + Layout::kLse),
                  sums + thread / 32 * kShortQueryTile);
    __syncthreads();
    ScoreGradient(s, dp, sums, factors + thread / 32 * kShortQueryTile);

    T* scores = reinterpret_cast<T*>(shared + Layout::kScores);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      StoreFragments<T, kShortQueryTile / 8, Layout::kScorePitch>(
          scores + (warp_key + m * 16) * Layout::kScorePitch, dp[m], 1.0F, 1.0F);
    }
    if constexpr (kBias) {
      if (p.dbias != nullptr) {
        VisitScores([&](int m, int n, int i, int, int) { dbias[m][n][i] += dp[m][n][i]; });
        const std::int64_t group = now.Group(p);
        if (step + 1 == steps || (p.groups > 1 && now.at.row + 1 == p.batch_rows)) {
          const std::int64_t elements = static_cast<std::int64_t>(p.queries) * p.keys;
          float* to =
              IsWholeGroup(p.ranges, p.rows, team, group)
                  ? p.dbias + (group * p.heads + head) * elements
                  : p.dbias_parts +
                        (PartSlot(p.ranges, p.rows, team, group) * p.heads + head) * elements;
          VisitScores([&](int m, int n, int i, int query, int key) {
            if (query < p.queries && key < p.keys) to[query * p.keys + key] = dbias[m][n][i];
            dbias[m][n][i] = 0.0F;
          });
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) dk[m][n][i] = dv[m][n][i] = 0.0F;
        }
      }
    }
    MultiplyScores<T, 2, kShortQueryTile / 8, kDim / 8, kPitch>(dv, s, dout);
    MultiplyScores<T, 2, kShortQueryTile / 8, kDim / 8, kPitch>(dk, dp, q);
    if (p.dq.data != nullptr) {
      __syncthreads();
      QueryGradient<T, kDim>(p, now.tile, rows.Get<T>(RowPointers::kDq), scores, k);
    }
    if (now.tile + 1 < tiles) continue;
    // V's rows of a warp are its own, and it is done with them.
    T* to_dv = rows.Get<T>(RowPointers::kDv);
    T* to_dk = rows.Get<T>(RowPointers::kDk);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int key = warp_key + m * 16;
      T* own = v + key * kPitch;
      if (p.dv.data != nullptr) {
        StoreThroughShared<T, kDim>(own, to_dv + key * p.dv.token, p.dv.token, p.keys - key, p.dim,
                                    dv[m], 1.0F, 1.0F);
      }
      if (p.dk.data != nullptr) {
        StoreThroughShared<T, kDim>(own, to_dk + key * p.dk.token, p.dk.token, p.keys - key, p.dim,
                                    dk[m], p.scale, p.scale);
      }
    }
  }
}

template <typename T, int kDim, bool kBias>
void LaunchShortBackward(const ShortKeysParams& p, cudaStream_t stream) {
  LaunchKernel("evo_attention backward (cuda sm80 short)", ShortBackwardKernel<T, kDim, kBias>,
               p.ranges.teams * p.heads, kShortThreads,
               ShortBackwardLayout<T, kDim>::Bytes(p.ahead), stream, p);
}

}  // namespace megafold::cuda
