// Forward of EvoAttention where a row has at most 128 keys. A block walks over the rows of one
// head; while a row is worked on the next one is copied. A warp takes 32 queries: those of its own
// and all keys, or, where there are only 32, all of them and a quarter of the keys, whose bias it
// keeps in registers while the rows that share it go by.
//
// Exponentials are of the scores as they are: with all keys of a row at hand, no maximum is needed
// unless the sum leaves the range in which p keeps its precision; then the row is done once more.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys/evo_attention_common.cuh"

namespace megafold::cuda {

inline constexpr int kForwardWarps = 4;
inline constexpr int kForwardThreads = kForwardWarps * 32;
inline constexpr int kForwardKeys = 32;  // that a warp takes at a time

template <typename T, int kDim, bool kSplitKeys>
struct ShortForwardLayout {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  static constexpr int kBlockQueries = kSplitKeys ? 32 : kForwardWarps * 32;
  static constexpr int kKeyBytes = kShortKeys * kPitch * 2;  // K or V
  static constexpr int kQueryBytes = kBlockQueries * kPitch * 2;
  static constexpr int kQueries = 4 * kKeyBytes;             // after two stages of K and V
  static constexpr int kTerms = kQueries + 2 * kQueryBytes;  // two rows' masks
  static constexpr int kSums =
      kTerms + 2 * kShortKeys * 4;  // what each warp has of the queries' sums
  static constexpr int kRows = kSums + (kSplitKeys ? kForwardWarps * 32 * 16 : 0);
  static constexpr int kBytes = kRows + static_cast<int>(sizeof(RowTable));
};

// Scores of 32 queries and 32 keys. A lane holds four queries' worth: 16 m + 8 half + lane / 4.
using ForwardScores = float[2][kForwardKeys / 8][4];

// The scores of a warp's queries and the keys at `k`, in units of <q, k>.
template <typename T, int kDim, bool kBias>
__device__ __forceinline__ void ComputeScores(ForwardScores& s,
                                              const typename Mma<T>::A (&q)[2][kDim / 16],
                                              const T* k, const float* terms,
                                              const ForwardScores& bias) {
#pragma unroll
  for (int n = 0; n < kForwardKeys / 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(terms + n * 8 + LaneId() % 4 * 2);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = i % 2 == 0 ? pair.x : pair.y;
        if constexpr (kBias) s[m][n][i] += bias[m][n][i];
      }
    }
  }
  MultiplyByRows<T, 2, kDim / 16, kForwardKeys / 8, kTilePitch<T, kDim>>(s, q, k);
}

// What a warp has of its 32 queries. O is divided by the sum of p as it was rounded for the product
// with V, so that a query that sees one key gets exactly its V; the log-sum-exp is of p itself.
template <int kDim>
struct ForwardState {
  float out[2][kDim / 8][4];  // sum of p v
  float weights[2][4];        // sum of rounded p: elements 0 and 2 of a fragment
  float sum[2][2];            // sum of p
  float shift[2][2];          // p = 2^(x - shift)
};

// All of a warp's keys: `count` of them.
template <typename T, int kDim, bool kBias>
__device__ __forceinline__ void AttendOnce(ForwardState<kDim>& state,
                                           const typename Mma<T>::A (&q)[2][kDim / 16], const T* k,
                                           const T* v, const float* terms,
                                           const ForwardScores& bias, int count, float scale) {
  constexpr int kPitch = kTilePitch<T, kDim>;
  const std::uint32_t one = Pack(1.0F, 1.0F, T{});
  const typename Mma<T>::B ones = {{one, one}};
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    state.sum[m][0] = state.sum[m][1] = 0.0F;
#pragma unroll
    for (auto& c : state.out[m]) c[0] = c[1] = c[2] = c[3] = 0.0F;
#pragma unroll
    for (float& weight : state.weights[m]) weight = 0.0F;
  }
#pragma unroll 1
  for (int key = 0; key < count; key += kForwardKeys) {
    ForwardScores s;
    ComputeScores<T, kDim, kBias>(s, q, k + key * kPitch, terms + key, bias);
    typename Mma<T>::A p[2][kForwardKeys / 16];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kForwardKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[m][n][i] = Exp2(fmaf(s[m][n][i], scale, -state.shift[m][i / 2]));
          state.sum[m][i / 2] += s[m][n][i];
        }
      }
#pragma unroll
      for (int j = 0; j < kForwardKeys / 16; ++j) {
        p[m][j] = Mma<T>::FromAccumulators(s[m][2 * j], s[m][2 * j + 1]);
        Mma<T>::Run(state.weights[m], p[m][j], ones);
      }
    }
    MultiplyByColumns<T, 2, kForwardKeys / 16, kDim / 8, kPitch>(state.out, p, v + key * kPitch);
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) state.sum[m][half] = SumOfQuad(state.sum[m][half]);
  }
}

template <typename T, int kDim, bool kBias>
__device__ __forceinline__ void Attend(ForwardState<kDim>& state,
                                       const typename Mma<T>::A (&q)[2][kDim / 16], const T* k,
                                       const T* v, const float* terms, const ForwardScores& bias,
                                       int count, float scale) {
#pragma unroll
  for (auto& shift : state.shift) shift[0] = shift[1] = 0.0F;
#pragma unroll 1
  for (bool fitted = false;; fitted = true) {
    AttendOnce<T, kDim, kBias>(state, q, k, v, terms, bias, count, scale);
    const bool fits = IsInRange<T>(state.sum[0][0]) && IsInRange<T>(state.sum[0][1]) &&
                      IsInRange<T>(state.sum[1][0]) && IsInRange<T>(state.sum[1][1]);
    if (fitted || __all_sync(0xFFFFFFFFU, fits)) return;
    float maximum[2][2] = {{-kInfinity, -kInfinity}, {-kInfinity, -kInfinity}};
#pragma unroll 1
    for (int key = 0; key < count; key += kForwardKeys) {
      ForwardScores s;
      ComputeScores<T, kDim, kBias>(s, q, k + key * kTilePitch<T, kDim>, terms + key, bias);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < kForwardKeys / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) maximum[m][i / 2] = fmaxf(maximum[m][i / 2], s[m][n][i]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x = MaximumOfQuad(maximum[m][half]);
        state.shift[m][half] = x == -kInfinity ? 0.0F : x * scale;
      }
    }
  }
}

// The natural logarithm of a sum of exponentials.
__device__ __forceinline__ float LogSumExp(float sum, float shift) {
  constexpr float kLn2 = 0.693147180559945309F;
  return sum > 0.0F ? (shift + __log2f(sum)) * kLn2 : kInfinity;
}

// A quarter of the keys each: a warp leaves its sums where its keys were, then every thread adds up
// a quarter of one query's vector.
template <typename T, int kDim>
class KeyQuarters {
 public:
  __device__ __forceinline__ KeyQuarters(char* keys, char* values, float4* sums)
      : keys_(keys), values_(values), sums_(sums) {}

  __device__ __forceinline__ void Leave(const ForwardState<kDim>& state) const {
    const int thread = FreshThread();
    const int warp = thread / 32;
    const int lane = thread % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = m * 16 + half * 8 + lane / 4;
        if (lane % 4 == 0) {
          sums_[warp * 32 + query] = make_float4(state.sum[m][half], state.shift[m][half],
                                                 state.weights[m][half * 2], 0.0F);
        }
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          *reinterpret_cast<float2*>(Part(warp, query, n * 8 + lane % 4 * 2)) =
              make_float2(state.out[m][n][half * 2], state.out[m][n][half * 2 + 1]);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(T* out, std::int64_t token, float* lse, int queries,
                                        int dim) const {
    constexpr int kEach = kDim / 4;
    const int thread = FreshThread();
    const int query = thread / 4;
    const int first = thread % 4 * kEach;
    if (query >= queries) return;
    float4 parts[kForwardWarps];
    float shift = -kInfinity;
#pragma unroll
    for (int warp = 0; warp < kForwardWarps; ++warp) {
      parts[warp] = sums_[warp * 32 + query];
      if (parts[warp].x > 0.0F) shift = fmaxf(shift, parts[warp].y);
    }
    float factors[kForwardWarps];
    float sum = 0.0F;
    float weights = 0.0F;
#pragma unroll
    for (int warp = 0; warp < kForwardWarps; ++warp) {
      factors[warp] = parts[warp].x > 0.0F ? Exp2(parts[warp].y - shift) : 0.0F;
      sum = fmaf(parts[warp].x, factors[warp], sum);
      weights = fmaf(parts[warp].z, factors[warp], weights);
    }
    if (first == 0) lse[query] = LogSumExp(sum, shift);
    const float inverse = InverseOf(weights);
#pragma unroll
    for (auto& factor : factors) factor *= inverse;
#pragma unroll
    for (int d = first; d < first + kEach; d += 4) {
      if (d >= dim) return;
      float4 x = {};
#pragma unroll
      for (int warp = 0; warp < kForwardWarps; ++warp) {
        const float4 part = *reinterpret_cast<const float4*>(Part(warp, query, d));
        x.x = fmaf(part.x, factors[warp], x.x);
        x.y = fmaf(part.y, factors[warp], x.y);
        x.z = fmaf(part.z, factors[warp], x.z);
        x.w = fmaf(part.w, factors[warp], x.w);
      }
      *reinterpret_cast<uint2*>(out + query * token + d) =
          make_uint2(Pack(x.x, x.y, T{}), Pack(x.z, x.w, T{}));
    }
  }

 private:
  // The first half of D lies where a warp's keys were, the second where their V was.
  __device__ __forceinline__ float* Part(int warp, int query, int d) const {
    constexpr int kPitch = kDim / 2 + 4;
    static_assert(kPitch * 4 == kTilePitch<T, kDim> * 2);
    char* base = d < kDim / 2 ? keys_ : values_;
    return reinterpret_cast<float*>(base) + (warp * 32 + query) * kPitch + d % (kDim / 2);
  }

  char* keys_;
  char* values_;
  float4* sums_;
};

template <typename T, int kDim, bool kSplitKeys>
__global__ __launch_bounds__(kForwardThreads, kDim <= 32 ? 3 : 2) void ShortForwardKernel(
    const __grid_constant__ ShortKeysParams p) {
  using Layout = ShortForwardLayout<T, kDim, kSplitKeys>;
  constexpr int kPitch = Layout::kPitch;
  extern __shared__ __align__(128) char shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = LaneId();
  const int warp_query = kSplitKeys ? 0 : thread / 32 * 32;
  const int warp_key = kSplitKeys ? thread / 32 * 32 : 0;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const auto first_row = static_cast<int>(p.ranges.Begin(static_cast<int>(blockIdx.x) / p.heads));
  const auto last_row = static_cast<int>(p.ranges.End(static_cast<int>(blockIdx.x) / p.heads));
  const int tiles =
      kSplitKeys ? 1 : (p.queries + Layout::kBlockQueries - 1) / Layout::kBlockQueries;
  const int steps = (last_row - first_row) * tiles;

  auto& rows = *reinterpret_cast<RowTable*>(shared + Layout::kRows);
  std::uint32_t mask_bits = 0;
  const auto fetch = [&](int step) {
    if (step < steps) {
      const StepPlace next = rows.Copied(step);
      const int query = next.tile * Layout::kBlockQueries;
      CopyTile<T, Layout::kBlockQueries, kDim, kForwardThreads>(
          shared + Layout::kQueries + (step & 1) * Layout::kQueryBytes,
          rows.Get<const T>(step, RowTable::kQ) + query * p.q.token, p.q.token, p.queries - query,
          p.dim);
      if (next.tile == 0) {
        char* stage = shared + next.parity * 2 * Layout::kKeyBytes;
        CopyTile<T, kShortKeys, kDim, kForwardThreads>(stage, rows.Get<const T>(step, RowTable::kK),
                                                       p.k.token, p.keys, p.dim);
        CopyTile<T, kShortKeys, kDim, kForwardThreads>(stage + Layout::kKeyBytes,
                                                       rows.Get<const T>(step, RowTable::kV),
                                                       p.v.token, p.keys, p.dim);
        mask_bits = MaskBitsOf<T>(p, rows.Get<const void>(step, RowTable::kMask), thread);
      }
    }
    CopyAsyncCommit();
  };

  const float scale = p.scale * kLog2E;
  const float inverse_scale = 1.0F / p.scale;
  ForwardScores bias;
  rows.Begin(p, first_row, head, sizeof(T));
  __syncthreads();
  fetch(0);
  rows.Advance(p, 0, -1, tiles, head, sizeof(T));
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const StepPlace now = rows.Copied(step);
    float* terms = reinterpret_cast<float*>(shared + Layout::kTerms) + now.parity * kShortKeys;
    if (now.tile == 0) terms[thread] = MaskStart<T>(p, mask_bits, thread, inverse_scale);
    if constexpr (kSplitKeys) {
      if (step == 0 || (p.groups > 1 && now.row == 0)) {
        ReadShortBias<T>(bias, p, now.Group(p), head, inverse_scale, [&](int m, int n, int i) {
          return make_int2(m * 16 + i / 2 * 8 + lane / 4, warp_key + n * 8 + lane % 4 * 2 + i % 2);
        });
      }
    }
    CopyAsyncWait<0>();
    __syncthreads();
    fetch(step + 1);
    rows.Advance(p, step + 1, step, tiles, head, sizeof(T));
    const int query = now.tile * Layout::kBlockQueries + warp_query;
    T* out = rows.Get<T>(step, RowTable::kOut) + query * p.out.token;
    float* lse = rows.Get<float>(step, RowTable::kOutLse) + query;
    const int count = p.queries - query;
    if (count <= 0) continue;

    char* stage = shared + now.parity * 2 * Layout::kKeyBytes;
    const T* k = reinterpret_cast<const T*>(stage) + warp_key * kPitch;
    T* q = reinterpret_cast<T*>(shared + Layout::kQueries + (step & 1) * Layout::kQueryBytes) +
           warp_query * kPitch;
    typename Mma<T>::A a[2][kDim / 16];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int depth = 0; depth < kDim / 16; ++depth) {
        a[m][depth] = Mma<T>::template LoadA<kPitch>(q + m * 16 * kPitch + depth * 16);
      }
    }
    ForwardState<kDim> state;
    Attend<T, kDim, kSplitKeys>(state, a, k, k + kShortKeys * kPitch, terms + warp_key, bias,
                                kSplitKeys ? kForwardKeys : p.keys, scale);
    if constexpr (kSplitKeys) {
      const KeyQuarters<T, kDim> quarters(stage, stage + Layout::kKeyBytes,
                                          reinterpret_cast<float4*>(shared + Layout::kSums));
      __syncwarp();
      quarters.Leave(state);
      __syncthreads();
      quarters.Store(out, p.out.token, lse, count, p.dim);
    } else {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int mine = m * 16 + half * 8 + lane / 4;
          if (lane % 4 == 0 && mine < count) {
            lse[mine] = LogSumExp(state.sum[m][half], state.shift[m][half]);
          }
        }
        StoreThroughShared<T, kDim>(q + m * 16 * kPitch, out + m * 16 * p.out.token, p.out.token,
                                    count - m * 16, p.dim, state.out[m],
                                    InverseOf(state.weights[m][0]), InverseOf(state.weights[m][2]));
      }
    }
  }
}

template <typename T, int kDim, bool kSplitKeys>
void LaunchShortForward(const ShortKeysParams& p, cudaStream_t stream) {
  LaunchKernel("evo_attention forward (cuda sm80 short)", ShortForwardKernel<T, kDim, kSplitKeys>,
               p.ranges.teams * p.heads, kForwardThreads,
               ShortForwardLayout<T, kDim, kSplitKeys>::kBytes, stream, p);
}

}  // namespace megafold::cuda
