// Forward of EvoAttention where a row has at most 128 keys: all its scores are in registers at
// once, so the softmax is taken in one piece. A block walks over the rows of one head; a warp has
// 16 queries and all keys. While a row is worked on the next one is copied.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys/evo_attention_common.cuh"

namespace megafold::cuda {

template <typename T, int kDim, int kWarps>
struct ShortForwardLayout {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  static constexpr int kKeyBytes = kShortKeys * kPitch * 2;     // K or V
  static constexpr int kQueryBytes = kWarps * 16 * kPitch * 2;  // Q
  static constexpr int kQueries = 4 * kKeyBytes;                // after two stages of K and V
  static constexpr int kTerms = kQueries + 2 * kQueryBytes;     // two rows' masks
  static constexpr int kBytes = kTerms + 2 * kShortKeys * 4;
};

// Scores are kept in steps of 32 keys: those past the last key are left out.
inline constexpr int kKeyStep = 32;
inline constexpr int kKeySteps = kShortKeys / kKeyStep;
using StepScores = float[1][kKeyStep / 8][4];

template <typename T>
__device__ __forceinline__ void ReadForwardBias(StepScores (&bias)[kKeySteps],
                                                const ShortKeysParams& p, std::int64_t base,
                                                int query, float inverse_scale) {
  const int lane = LaneId();
#pragma unroll
  for (int step = 0; step < kKeySteps; ++step) {
#pragma unroll
    for (int n = 0; n < kKeyStep / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        bias[step][0][n][i] =
            BiasStart<T>(p, base, query + lane / 4 + i / 2 * 8,
                         step * kKeyStep + n * 8 + lane % 4 * 2 + i % 2, inverse_scale);
      }
    }
  }
}

// Scores in units of <q, k> become exponentials; gives the sums and, in units of log2, the shifts
// of a lane's two queries.
__device__ __forceinline__ void SoftmaxOfRow(StepScores (&s)[kKeySteps], float scale,
                                             float (&sum)[2], float (&shift)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float maximum = -kInfinity;
#pragma unroll
    for (auto& step : s) {
#pragma unroll
      for (auto& x : step[0]) maximum = fmaxf(maximum, fmaxf(x[half * 2], x[half * 2 + 1]));
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(0xFFFFFFFFU, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(0xFFFFFFFFU, maximum, 2));
    shift[half] = maximum == -kInfinity ? 0.0F : maximum * scale;
    sum[half] = 0.0F;
#pragma unroll
    for (auto& step : s) {
#pragma unroll
      for (auto& x : step[0]) {
        x[half * 2] = Exp2(fmaf(x[half * 2], scale, -shift[half]));
        x[half * 2 + 1] = Exp2(fmaf(x[half * 2 + 1], scale, -shift[half]));
        sum[half] += x[half * 2] + x[half * 2 + 1];
      }
    }
    sum[half] += __shfl_xor_sync(0xFFFFFFFFU, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xFFFFFFFFU, sum[half], 2);
  }
}

template <typename T, int kDim, int kWarps, bool kBias>
__global__ __launch_bounds__(kWarps * 32, kWarps == 2 ? 4 : 2) void ShortForwardKernel(
    const __grid_constant__ ShortKeysParams p) {
  using Layout = ShortForwardLayout<T, kDim, kWarps>;
  constexpr int kPitch = Layout::kPitch;
  constexpr int kThreads = kWarps * 32;
  constexpr int kTermsEach = (kShortKeys + kThreads - 1) / kThreads;
  extern __shared__ __align__(128) char shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp_query = thread / 32 * 16;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const std::int64_t team = static_cast<int>(blockIdx.x) / p.heads;
  const std::int64_t first_row = p.ranges.Begin(team);
  const int tiles = (p.queries + kWarps * 16 - 1) / (kWarps * 16);
  const std::int64_t steps = (p.ranges.End(team) - first_row) * tiles;

  StepCursor next(first_row, p.batch_rows);
  RowPointers rows(p, next.at, head, sizeof(T));
  std::uint32_t mask_bits[kTermsEach];
  const auto fetch = [&](std::int64_t step) {
    if (step < steps) {
      const int query = next.tile * kWarps * 16;
      CopyTile<T, kWarps * 16, kDim, kThreads>(
          shared + Layout::kQueries + (step & 1) * Layout::kQueryBytes,
          rows.Get<const T>(RowPointers::kQ) + query * p.q.token, p.q.token, p.queries - query,
          p.dim);
      if (next.tile == 0) {
        char* stage = shared + next.parity * 2 * Layout::kKeyBytes;
        CopyTile<T, kShortKeys, kDim, kThreads>(stage, rows.Get<const T>(RowPointers::kK),
                                                p.k.token, p.keys, p.dim);
        CopyTile<T, kShortKeys, kDim, kThreads>(stage + Layout::kKeyBytes,
                                                rows.Get<const T>(RowPointers::kV), p.v.token,
                                                p.keys, p.dim);
        const void* mask = rows.Get<const void>(RowPointers::kMask);
#pragma unroll
        for (int i = 0; i < kTermsEach; ++i) {
          mask_bits[i] = MaskBitsOf<T>(p, mask, thread + i * kThreads);
        }
      }
      rows.Advance(p, next, tiles, false);
    }
    CopyAsyncCommit();
  };

  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;
  StepScores bias[kKeySteps] = {};
  StepCursor now = next;
  fetch(0);
#pragma unroll 1
  for (std::int64_t step = 0; step < steps; ++step, rows.Advance(p, now, tiles, true)) {
    float* terms = reinterpret_cast<float*>(shared + Layout::kTerms) + now.parity * kShortKeys;
    if (now.tile == 0) {
#pragma unroll
      for (int i = 0; i < kTermsEach; ++i) {
        const int key = thread + i * kThreads;
        if (key < kShortKeys) terms[key] = MaskStart<T>(p, mask_bits[i], key, inverse_scale);
      }
    }
    const int query = now.tile * kWarps * 16 + warp_query;
    if constexpr (kBias) {
      if (step == 0 || (p.groups > 1 && now.at.row == 0)) {
        ReadForwardBias<T>(bias, p, now.Group(p) * p.bias.group + head * p.bias.head, query,
                           inverse_scale);
      }
    }
    CopyAsyncWait<0>();
    __syncthreads();
    fetch(step + 1);
    const int count = p.queries - query;
    T* out = rows.Get<T>(RowPointers::kOut) + query * p.out.token;
    float* lse = rows.Get<float>(RowPointers::kOutLse) + query;
    if (count <= 0) continue;

    const T* k = reinterpret_cast<const T*>(shared + now.parity * 2 * Layout::kKeyBytes);
    const T* v = k + kShortKeys * kPitch;
    T* q = reinterpret_cast<T*>(shared + Layout::kQueries + (step & 1) * Layout::kQueryBytes) +
           warp_query * kPitch;
    typename Mma<T>::A a[1][kDim / 16];
#pragma unroll
    for (int depth = 0; depth < kDim / 16; ++depth) {
      a[0][depth] = Mma<T>::template LoadA<kPitch>(q + depth * 16);
    }
    StepScores s[kKeySteps];
#pragma unroll
    for (int i = 0; i < kKeySteps; ++i) {
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][0][n][j] = kBias ? bias[i][0][n][j] : 0.0F;
      }
    }
    if (AnyTerm<kShortKeys>(terms)) {
#pragma unroll
      for (int i = 0; i < kKeySteps; ++i) AddColumnTerm(s[i], terms + i * kKeyStep);
    }
#pragma unroll
    for (int i = 0; i < kKeySteps; ++i) {
      MultiplyByRows<T, 1, kDim / 16, kKeyStep / 8, kPitch>(s[i], a, k + i * kKeyStep * kPitch);
    }
    float sum[2], shift[2];
    SoftmaxOfRow(s, scale, sum, shift);
    float o[1][kDim / 8][4] = {};
#pragma unroll
    for (int i = 0; i < kKeySteps; ++i) {
      MultiplyScores<T, 1, kKeyStep / 8, kDim / 8, kPitch>(o, s[i], v + i * kKeyStep * kPitch);
    }
    constexpr float kLn2 = 0.693147180559945309F;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor[half] = sum[half] > 0.0F ? 1.0F / sum[half] : 0.0F;
      const int mine = half * 8 + LaneId() / 4;
      if (LaneId() % 4 == 0 && mine < count) {
        lse[mine] = sum[half] > 0.0F ? (shift[half] + log2f(sum[half])) * kLn2 : kInfinity;
      }
    }
    StoreThroughShared<T, kDim>(q, out, p.out.token, count, p.dim, o[0], factor[0], factor[1]);
  }
}

template <typename T, int kDim, int kWarps, bool kBias>
void LaunchShortForward(const ShortKeysParams& p, cudaStream_t stream) {
  LaunchKernel("evo_attention forward (cuda sm80 short)",
               ShortForwardKernel<T, kDim, kWarps, kBias>, p.ranges.teams * p.heads, kWarps * 32,
               ShortForwardLayout<T, kDim, kWarps>::kBytes, stream, p);
}

}  // namespace megafold::cuda
