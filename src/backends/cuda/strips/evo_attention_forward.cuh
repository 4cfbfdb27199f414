// Forward of EvoAttention for small grids. A block owns one to three tiles of 16 queries of one
// head and row; each warp takes all of them and a strip of 32 keys, with a maximum, a sum and an O
// of its own, which are combined at the end. The bias goes straight into registers, K and V into
// shared memory that no other warp reads, Q into shared memory for all, everything at once. Of a
// strip, lane t of four holds keys 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 (StripOrder), so
// that it reads their bias as vectors.
#pragma once

#include <algorithm>

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/strips/evo_attention_forward_scores.cuh"
#include "backends/cuda/strips/evo_attention_forward_sums.cuh"

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
