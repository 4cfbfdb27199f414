// Forward of EvoAttention for small grids. A block owns one to three tiles of 16 queries of one
// head and row; each warp takes all of them and a strip of 32 keys, with a maximum, a sum and an O
// of its own, which are combined at the end. The bias goes straight into registers, K and V into
// shared memory that no other warp reads, Q into shared memory for all, everything at once. Of a
// strip, lane t of four holds keys 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 (StripOrder), so
// that it reads their bias as vectors.
#pragma once

#include <algorithm>

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/strips/evo_attention_params.h"
#include "backends/cuda/strips/strips.cuh"

namespace megafold::cuda {

template <typename T, int kTiles, int kDim>
struct StripForward {
  static constexpr int kQueries = kTiles * 16;
  static constexpr int kOut = (kDim + 7) / 8;  // tiles of O's columns
  static constexpr int kPitch = kSumPitch<kDim>;
  static constexpr int kQueryBytes = kQueries * StripTile<kDim>::kRowBytes;
  static constexpr int kStripBytes = kStrip * StripTile<kDim>::kRowBytes;
  static constexpr int kBiasBytes = kQueries * kStrip * 4;

  static int Bytes(const StripProblem& p, int warps) {
    const bool staged = p.bias_kind != TermKind::kNone && !p.bias_vectors;
    return kQueryBytes +
           warps * (2 * kStripBytes + kQueries * (kPitch * 4 + 8) + (staged ? kBiasBytes : 0));
  }

  // Where things lie in shared memory.
  struct Shared {
    char* queries;
    char *keys, *values;  // of the warp
    float* sums;          // [warps][kQueries][kPitch]
    float2* statistics;   // [warps][kQueries], {maximum, sum}
    char* bias;           // of the warp
    __device__ __forceinline__ Shared(char* base, int warp, int warps)
        : queries(base),
          keys(base + kQueryBytes + warp * 2 * kStripBytes),
          values(keys + kStripBytes),
          sums(reinterpret_cast<float*>(base + kQueryBytes + warps * 2 * kStripBytes)),
          statistics(reinterpret_cast<float2*>(sums + warps * kQueries * kPitch)),
          bias(reinterpret_cast<char*>(statistics + warps * kQueries) + warp * kBiasBytes) {}
  };
};

// ---- The bias of a lane's queries and keys. ----

// Reads in the order of the program: what is wanted first arrives first.
__device__ __forceinline__ void ReadInOrder(std::uint32_t* to, const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}
__device__ __forceinline__ void ReadHalfInOrder(std::uint32_t* to, const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "l"(from));
}

// Eight words for each query, float32 or, as long as they are on their way, 16-bit pairs in the
// first four.
template <typename T, int kTiles, bool kRows>
struct StripBias {
  std::uint32_t word[kTiles * 2][8];

  __device__ __forceinline__ void Load(const StripProblem& p, char* staged, int first_query,
                                       int first_key) {
    const char* const bias = StripBase<kRows>(p.bias, p.bias_head, p.row.bias);
    if (p.bias_kind == TermKind::kNone) return;
    const int g = LaneId() / 4, keys = LaneId() % 4 * 4;
    if (!p.bias_vectors) {
      StageBias(p, staged, kStrip, kTiles * 16, kStrip, bias, first_query, first_key);
      TakeStaged(p, staged, g, keys);
      return;
    }
    // The first key of a lane's four and of its other four.
    const int first = min(first_key + keys, p.keys - 4);
    const int second = min(first_key + keys + 16, p.keys - 4);
    const std::uint32_t bytes = p.bias_kind == TermKind::kFloat32 ? 4 : 2;
    const auto offset = static_cast<std::uint32_t>(first) * bytes;
    const auto between = static_cast<std::uint32_t>(second - first) * bytes;
    const std::uint32_t stride = p.bias_query * bytes;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      const int row = min(first_query + i * 8 + g, p.queries - 1);
      const char* const from = bias + offset + VectorOffset(row, stride);
      if (p.bias_kind == TermKind::kFloat32) {
        ReadInOrder(word[i], from);
        ReadInOrder(word[i] + 4, from + between);
      } else {
        ReadHalfInOrder(word[i], from);
        ReadHalfInOrder(word[i] + 2, from + between);
      }
    }
  }

  // Makes float32 of it.
  __device__ __forceinline__ void Widen(const StripProblem& p) {
    if (p.bias_kind == TermKind::kFloat32) return;
    if (p.bias_kind == TermKind::kNone) {
#pragma unroll
      for (int i = 0; i < kTiles * 16; ++i) word[i / 8][i % 8] = 0;
      return;
    }
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
#pragma unroll
      for (int j = 3; j >= 0; --j) {
        const float2 pair = ReadPair(reinterpret_cast<const T*>(&word[i][j]));
        word[i][j * 2] = __float_as_uint(pair.x);
        word[i][j * 2 + 1] = __float_as_uint(pair.y);
      }
    }
  }

  // Scores of tile m become scale s + bias.
  __device__ __forceinline__ void Add(float scale, int m, float (&s)[4][4]) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& x = s[i / 4][i % 4];
      x = fmaf(x, scale, __uint_as_float(word[m * 2 + i / 2 % 2][i / 4 * 2 + i % 2]));
    }
  }

 private:
  __device__ __forceinline__ void TakeStaged(const StripProblem& p, const char* staged, int g,
                                             int keys) {
    const bool wide = p.bias_kind == TermKind::kFloat32;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      const int at = (i * 8 + g) * kStrip + keys;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (wide) {
          const auto x = *reinterpret_cast<const uint4*>(staged + (at + half * 16) * 4);
          word[i][half * 4] = x.x;
          word[i][half * 4 + 1] = x.y;
          word[i][half * 4 + 2] = x.z;
          word[i][half * 4 + 3] = x.w;
        } else {
          const auto x = *reinterpret_cast<const uint2*>(staged + (at + half * 16) * 2);
          word[i][half * 2] = x.x;
          word[i][half * 2 + 1] = x.y;
        }
      }
    }
  }
};

// ---- The mask's terms of a lane's keys. ----

class StripTerms {
 public:
  // `term` is that of the lane's key of the strip, in the keys' own order.
  __device__ __forceinline__ explicit StripTerms(float term)
      : any_(__any_sync(0xFFFFFFFFU, term != 0.0F)) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      term_[i] = __shfl_sync(0xFFFFFFFFU, term, i / 4 * 16 + LaneId() % 4 * 4 + i % 4);
    }
  }
  __device__ __forceinline__ void Add(float (&s)[4][4]) const {
    if (!any_) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i / 4][i % 4] += term_[i / 4 * 2 + i % 2];
  }

 private:
  bool any_;  // of the strip's keys has one
  float term_[8];
};

// ---- Softmax over a warp's keys. ----

// Maximum and sum of a lane's queries over the keys that its warp has seen; the sum is the lane's.
template <int kTiles>
struct StripSoftmax {
  float maximum[kTiles][2], sum[kTiles][2];

  // Turns tile m's scores into p. After the first strip, `out` follows the maximum.
  template <int kOut>
  __device__ __forceinline__ void Run(int m, float (&s)[4][4], float (&out)[kOut][4], bool first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = first ? -kInfinity : maximum[m][half];
#pragma unroll
      for (int j = 0; j < 4; ++j) best = fmaxf(best, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFFU, best, 2));
      const float shift = best == -kInfinity ? 0.0F : best;
      if (first) {
        sum[m][half] = 0.0F;
      } else {
        const float factor = StripExp(maximum[m][half], shift);
        sum[m][half] *= factor;
#pragma unroll
        for (int n = 0; n < kOut; ++n) {
          out[n][half * 2] *= factor;
          out[n][half * 2 + 1] *= factor;
        }
      }
      maximum[m][half] = best;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = s[i / 2][half * 2 + i % 2];
        x = StripExp(x, shift);
        sum[m][half] += x;
      }
    }
  }
};

// ---- The parts of O. ----

// Writes a warp's part of O of 16 queries, and what it weighs, to the part's first rows in `sums`
// and `statistics`.
template <int kDim, int kOut>
__device__ __forceinline__ void PutTilePart(float* sums, float2* statistics,
                                            const float (&out)[kOut][4], const float (&maximum)[2],
                                            const float (&sum)[2]) {
  const int g = LaneId() / 4, t = LaneId() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = half * 8 + g;
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      *reinterpret_cast<float2*>(sums + row * kSumPitch<kDim> + n * 8 + t * 2) =
          make_float2(out[n][half * 2], out[n][half * 2 + 1]);
    }
    float total = sum[half];
    total += __shfl_xor_sync(0xFFFFFFFFU, total, 1);
    total += __shfl_xor_sync(0xFFFFFFFFU, total, 2);
    if (t == 0) statistics[row] = make_float2(maximum[half], total);
  }
}

// Combines the warps' parts of four columns of a query in their order, and stores O and the
// log-sum-exp. Row r of the block's part i is row i * kQueries + r of `sums` and `statistics`.
// kAll: there are the most warps that a block may have, and so the parts lie at distances that are
// known.
template <typename T, int kQueries, int kDim, bool kRows, bool kAll>
__device__ __forceinline__ void StoreCombined(const StripProblem& p, const float* sums,
                                              const float2* statistics, int warps, int first_query,
                                              int row, int column) {
  const int query = first_query + row;
  if (query >= p.queries || column >= p.dim) return;
  // Unrolled for the most warps, so that the reads do not wait for each other.
  float2 each[kStripWarps];
  float4 value[kStripWarps];
  float best = -kInfinity;
#pragma unroll
  for (int part = 0; part < kStripWarps; ++part) {
    const int at = (kAll ? part : min(part, warps - 1)) * kQueries + row;
    each[part] = statistics[at];
    value[part] = *reinterpret_cast<const float4*>(sums + at * kSumPitch<kDim> + column);
    best = fmaxf(best, each[part].x);
  }
  const float shift = best == -kInfinity ? 0.0F : best;
  float sum = 0.0F;
  float4 out = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
  for (int part = 0; part < kStripWarps; ++part) {
    const float factor = kAll || part < warps ? StripExp(each[part].x, shift) : 0.0F;
    sum = fmaf(factor, each[part].y, sum);
    out.x = fmaf(value[part].x, factor, out.x);
    out.y = fmaf(value[part].y, factor, out.y);
    out.z = fmaf(value[part].z, factor, out.z);
    out.w = fmaf(value[part].w, factor, out.w);
  }
  StoreQuad<T, kRows>(p.out, p.row.out, query, column, out,
                      sum > 0.0F ? __fdividef(1.0F, sum) : 0.0F);
  if (column == 0) {
    p.lse[StripStatistic<kRows>(p) + query] = sum > 0.0F ? shift + __logf(sum) : kInfinity;
  }
}

// The same for all of a block's queries.
template <typename T, int kQueries, int kDim, bool kRows>
__device__ __forceinline__ void StoreBlock(const StripProblem& p, const float* sums,
                                           const float2* statistics, int warps, int first_query) {
  constexpr int kQuads = kDim / 4;
  const auto store = [&]<bool kAll>() {
#pragma unroll 1
    for (int quad = static_cast<int>(threadIdx.x); quad < kQueries * kQuads;
         quad += static_cast<int>(blockDim.x)) {
      StoreCombined<T, kQueries, kDim, kRows, kAll>(p, sums, statistics, warps, first_query,
                                                    quad / kQuads, quad % kQuads * 4);
    }
  };
  if (warps == kStripWarps) {
    store.template operator()<true>();
  } else {
    store.template operator()<false>();
  }
}

// ---- The kernel. ----

// The block's Q, eight vectors a warp at a time.
template <typename T, int kTiles, int kDim, bool kRows>
__device__ __forceinline__ void CopyBlockQueries(const StripProblem& p, char* tile, int warp,
                                                 int warps, int first_query) {
  const VectorCopy<kDim> copy(StripBase<kRows>(p.q.data, p.q.head, p.row.q), p.q.token, p.queries,
                              p.dim);
#pragma unroll 1
  for (int row = warp * 8; row < kTiles * 16; row += warps * 8) {
    copy.Run(tile, row, first_query + row + LaneId() / 4);
  }
}

// A warp's strip of K or V, in the order of the strip.
template <int kDim>
__device__ __forceinline__ void CopyStrip(const VectorCopy<kDim>& vectors, char* tile,
                                          int first_key) {
#pragma unroll
  for (int row = 0; row < kStrip; row += 8) {
    vectors.Run(tile, row, first_key + StripOrder(row + LaneId() / 4));
  }
}

// On Hopper the kernel is launched while the one that was queued before it still ends, and lets the
// next one do the same: nothing but parameters is read, and nothing stored, before this returns.
__device__ __forceinline__ void WaitForOperands() {
#if __CUDA_ARCH__ >= 900
  WaitForPrevious();
  LetNextBegin();
#endif
}
// Whether the current device runs code that waits as above; other code must not begin early.
inline bool BeginsEarly() {
#ifdef MEGAFOLD_CUDA_SM90A
  int device = 0;
  CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
  return IsHopper(device);
#else
  return false;
#endif
}

// kOnce: every warp has one strip. kRows: there is more than one row.
template <typename T, int kTiles, int kDim, bool kOnce, bool kRows>
__global__ __launch_bounds__(kStripWarps *
                             32) void StripForwardKernel(const __grid_constant__ StripProblem p) {
  using Forward = StripForward<T, kTiles, kDim>;
  extern __shared__ __align__(128) char memory[];
  const int lane = LaneId();
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int first_query = static_cast<int>(blockIdx.x) * Forward::kQueries;
  const typename Forward::Shared shared(memory, warp, warps);
  const VectorCopy<kDim> copy_keys(StripBase<kRows>(p.k.data, p.k.head, p.row.k), p.k.token, p.keys,
                                   p.dim);
  const VectorCopy<kDim> copy_values(StripBase<kRows>(p.v.data, p.v.head, p.row.v), p.v.token,
                                     p.keys, p.dim);

  float out[kTiles][Forward::kOut][4] = {};
  StripSoftmax<kTiles> state;
  int first_key = warp * kStrip;
  WaitForOperands();
  CopyBlockQueries<T, kTiles, kDim, kRows>(p, shared.queries, warp, warps, first_query);
#pragma unroll 1
  do {
    const bool first = kOnce || first_key < warps * kStrip;
    const StripMask<kRows> mask(p, first_key + lane);
    CopyStrip(copy_keys, shared.keys, first_key);
    CopyAsyncCommit();
    CopyStrip(copy_values, shared.values, first_key);
    CopyAsyncCommit();
    StripBias<T, kTiles, kRows> bias;
    bias.Load(p, shared.bias, first_query, first_key);
    CopyAsyncWait<1>();  // all but V
    if (first) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    const StripTerms terms(mask.template Term<T>(p));
    bias.Widen(p);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const RowFragments<T, kDim> query_rows(shared.queries, m * 16);
      float s[4][4] = {};
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const TransposedFragments<T, kDim> keys(shared.keys, pair * 16);
        MultiplyStripVectors(s[pair * 2], query_rows, keys, 0);
        MultiplyStripVectors(s[pair * 2 + 1], query_rows, keys, 1);
      }
      bias.Add(p.scale, m, s);
      terms.Add(s);
      state.Run(m, s, out[m], first);
      if (m == 0) {
        CopyAsyncWait<0>();
        __syncwarp();
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ColumnFragments<T, kDim>(shared.values, half * 16)
            .MultiplyInto(out[m], Mma<T>::FromAccumulators(s[half * 2], s[half * 2 + 1]));
      }
    }
    if constexpr (!kOnce) {
      __syncwarp();
      first_key += warps * kStrip;
    }
  } while (!kOnce && first_key < p.keys);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const int row = warp * Forward::kQueries + m * 16;
    PutTilePart<kDim>(shared.sums + row * Forward::kPitch, shared.statistics + row, out[m],
                      state.maximum[m], state.sum[m]);
  }
  __syncthreads();
  StoreBlock<T, Forward::kQueries, kDim, kRows>(p, shared.sums, shared.statistics, warps,
                                                first_query);
}

template <typename T, int kTiles, int kDim>
void LaunchStripForward(const StripProblem& p, int shared_limit, cudaStream_t stream) {
  using Forward = StripForward<T, kTiles, kDim>;
  const int warps =
      StripWarps(p.keys, shared_limit, [&](int count) { return Forward::Bytes(p, count); });
  auto* kernel = p.layers > 1 ? StripForwardKernel<T, kTiles, kDim, true, true>
                              : StripForwardKernel<T, kTiles, kDim, true, false>;
  if (p.keys > warps * kStrip) {
    if constexpr (kTiles <= StripForwardTiles(kDim, false)) {
      kernel = StripForwardKernel<T, kTiles, kDim, false, true>;
    } else {
      LaunchStripForward<T, kTiles - 1, kDim>(p, shared_limit, stream);
      return;
    }
  }
  Launch("evo_attention forward (cuda sm80 spread)", kernel,
         {.blocks = (p.queries + Forward::kQueries - 1) / Forward::kQueries,
          .threads = warps * 32,
          .shared_bytes = static_cast<std::size_t>(Forward::Bytes(p, warps)),
          .early = BeginsEarly(),
          .columns = p.heads,
          .layers = p.layers},
         stream, p);
}

}  // namespace megafold::cuda
