// Forward of EvoAttention in strips on Hopper, for one strip a warp and a bias on vectors or none:
// as evo_attention_forward.cuh, but the bias comes in bulk copies, tile of 16 queries by tile, so
// that a tile is worked on while the next one is on its way. The tiles are a rolled loop: its code
// is fetched once.
#pragma once

#include <cstdint>

#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/strips/evo_attention_forward.cuh"

namespace megafold::cuda {

template <int kTiles, int kDim, int kBiasBytes>
struct StripStream {
  static constexpr int kQueries = kTiles * 16;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kQueryBytes = kQueries * StripTile<kDim>::kRowBytes;
  static constexpr int kStripBytes = kStrip * StripTile<kDim>::kRowBytes;

  // Bytes between queries of the bias in shared memory: a quarter or half of a warp reads its
  // vectors without bank conflicts.
  static __host__ __device__ int BiasPitch(int warps) {
    if (kBiasBytes == 0) return 0;
    return kBiasBytes == 4 ? warps * 128 + 64 : (warps + 1) / 2 * 128 + 32;
  }
  static int Bytes(int warps) {
    return kBarrierBytes + kQueryBytes + kQueries * BiasPitch(warps) +
           warps * (2 * kStripBytes + kQueries * (kSumPitch<kDim> * 4 + 8));
  }

  // Where things lie in shared memory.
  struct Shared {
    std::uint32_t bias_full;     // barriers, one a tile
    std::uint32_t queries_full;  // barrier
    char* queries;
    char *keys, *values;  // of the warp
    float* sums;          // [warps][kQueries][kSumPitch]
    float2* statistics;   // [warps][kQueries], {maximum, sum}
    char* bias;
    __device__ __forceinline__ Shared(char* base, int warp, int warps)
        : bias_full(SharedAddress(base)),
          queries_full(bias_full + kTiles * 8),
          queries(base + kBarrierBytes),
          keys(queries + kQueryBytes + warp * 2 * kStripBytes),
          values(keys + kStripBytes),
          sums(reinterpret_cast<float*>(queries + kQueryBytes + warps * 2 * kStripBytes)),
          statistics(reinterpret_cast<float2*>(sums + warps * kQueries * kSumPitch<kDim>)),
          bias(reinterpret_cast<char*>(statistics + warps * kQueries)) {}
  };
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// ---- The bias, in shared memory. ----

// kBytes: of an element; none: there is no bias.
template <typename T, int kBytes, bool kRows>
class StreamBias {
 public:
  __device__ __forceinline__ StreamBias(const StripProblem& p, char* tiles, int pitch,
                                        int first_key)
      : tiles_(SharedAddress(tiles)), pitch_(pitch) {
    const int key = first_key + LaneId() % 4 * 4;
    from_ = tiles + LaneId() / 4 * pitch + min(key, p.keys - 4) * kBytes;
    between_ = (min(key + 16, p.keys - 4) - min(key, p.keys - 4)) * kBytes;
  }

  // Queues this warp's rows of tile m.
  __device__ __forceinline__ void Copy(const StripProblem& p, int m, int first_query, int warp,
                                       int warps, std::uint32_t barrier) const {
    if constexpr (kBytes > 0) {
      if (ElectOne()) {
        const char* const bias = StripBase<kRows>(p.bias, p.bias_head, p.row.bias);
#pragma unroll 1
        for (int row = m * 16 + warp; row < m * 16 + 16; row += warps) {
          const int query = min(first_query + row, p.queries - 1);
          CopyBulk(tiles_ + row * pitch_, bias + VectorOffset(query, p.bias_query * kBytes),
                   p.keys * kBytes, barrier);
        }
      }
      __syncwarp();
    }
  }

  // Scores of tile m, which is there, become scale s + bias.
  __device__ __forceinline__ void Add(float scale, int m, float (&s)[4][4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2, pair = i % 2 * 2;
      const float4 term = Read(from_ + (m * 16 + half * 8) * pitch_ + i % 2 * between_);
      s[pair][half * 2] = fmaf(s[pair][half * 2], scale, term.x);
      s[pair][half * 2 + 1] = fmaf(s[pair][half * 2 + 1], scale, term.y);
      s[pair + 1][half * 2] = fmaf(s[pair + 1][half * 2], scale, term.z);
      s[pair + 1][half * 2 + 1] = fmaf(s[pair + 1][half * 2 + 1], scale, term.w);
    }
  }

 private:
  static __device__ __forceinline__ float4 Read(const char* from) {
    if constexpr (kBytes == 0) return make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    if constexpr (kBytes == 4) return *reinterpret_cast<const float4*>(from);
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    const float2 a = ReadPair(reinterpret_cast<const T*>(&bits.x));
    const float2 b = ReadPair(reinterpret_cast<const T*>(&bits.y));
    return make_float4(a.x, a.y, b.x, b.y);
  }
  std::uint32_t tiles_;
  int pitch_, between_;
  const char* from_;  // the lane's first bias of tile 0
};

// ---- The kernel. ----

// Readies the barriers; `bias_bytes` is what a tile's bias has.
template <int kTiles, typename Shared>
__device__ __forceinline__ void InitStream(const Shared& shared, int warps, int bias_bytes) {
  if (threadIdx.x == 0) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) BarrierInit(shared.bias_full + m * 8, 1);
    BarrierInit(shared.queries_full, warps * 32);
    BarrierInitFence();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) BarrierExpect(shared.bias_full + m * 8, bias_bytes);
  }
  __syncthreads();
}

template <typename T, int kTiles, int kDim, int kBiasBytes, bool kRows>
__device__ __forceinline__ void StripStreamForward(const StripProblem& p, char* memory) {
  using Stream = StripStream<kTiles, kDim, kBiasBytes>;
  constexpr int kOut = StripForward<T, kTiles, kDim>::kOut;
  const int lane = LaneId();
  // The same for the whole warp, as bulk copies are to know.
  const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x / 32), 0);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int first_query = static_cast<int>(blockIdx.x) * Stream::kQueries;
  const int first_key = warp * kStrip;
  const typename Stream::Shared shared(memory, warp, warps);
  const StreamBias<T, kBiasBytes, kRows> bias(p, shared.bias, Stream::BiasPitch(warps), first_key);
  InitStream<kTiles>(shared, warps, 16 * p.keys * kBiasBytes);
  WaitForOperands();
  const auto copy_bias = [&](int m) {
    bias.Copy(p, m, first_query, warp, warps, shared.bias_full + m * 8);
  };
  copy_bias(0);
  CopyBlockQueries<T, kTiles, kDim, kRows>(p, shared.queries, warp, warps, first_query);
  CopyAsyncArrive(shared.queries_full);
  const auto copy = [&](char* tile, const StripOperand& operand, std::int64_t row_bytes) {
    const VectorCopy<kDim> vectors(StripBase<kRows>(operand.data, operand.head, row_bytes),
                                   operand.token, p.keys, p.dim);
    CopyStrip(vectors, tile, first_key);
  };
  copy(shared.keys, p.k, p.row.k);
  copy(shared.values, p.v, p.row.v);
  CopyAsyncCommit();
  if (kTiles > 2) copy_bias(1);
  const StripMask<kRows> mask(p, first_key + lane);

  CopyAsyncWait<0>();
  __syncwarp();
  copy_bias(kTiles - 1);  // not before, so that it does not hold up K and V
  const TransposedFragments<T, kDim> keys[2] = {{shared.keys, 0}, {shared.keys, 16}};
  const ColumnFragments<T, kDim> values[2] = {{shared.values, 0}, {shared.values, 16}};
  const StripTerms terms(mask.template Term<T>(p));
  BarrierSpin(shared.queries_full, 0);
#pragma unroll 1
  for (int m = 0; m < kTiles; ++m) {
    const RowFragments<T, kDim> query_rows(shared.queries, m * 16);
    float s[4][4] = {}, out[kOut][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) MultiplyStripVectors(s[i], query_rows, keys[i / 2], i % 2);
    if (kBiasBytes > 0) BarrierSpin(shared.bias_full + m * 8, 0);
    bias.Add(p.scale, m, s);
    terms.Add(s);
    StripSoftmax<1> state;
    state.Run(0, s, out, true);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      values[half].MultiplyInto(out, Mma<T>::FromAccumulators(s[half * 2], s[half * 2 + 1]));
    }
    const int row = warp * Stream::kQueries + m * 16;
    PutTilePart<kDim>(shared.sums + row * kSumPitch<kDim>, shared.statistics + row, out,
                      state.maximum[0], state.sum[0]);
  }
  __syncthreads();
  StoreBlock<T, Stream::kQueries, kDim, kRows>(p, shared.sums, shared.statistics, warps,
                                               first_query);
}
#endif

// kBiasBytes: of an element of the bias; none: there is no bias. kRows: there is more than one row.
template <typename T, int kTiles, int kDim, int kBiasBytes, bool kRows>
__global__ __launch_bounds__(kStripWarps * 32) void StripStreamForwardKernel(
    const __grid_constant__ StripProblem p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  StripStreamForward<T, kTiles, kDim, kBiasBytes, kRows>(p, memory);
#endif
}

template <typename T, int kTiles, int kDim, int kBiasBytes>
bool LaunchStripStream(const StripProblem& p, int shared_limit, cudaStream_t stream) {
  using Stream = StripStream<kTiles, kDim, kBiasBytes>;
  const int warps = (p.keys + kStrip - 1) / kStrip;
  if (warps > kStripWarps || Stream::Bytes(warps) > shared_limit) return false;
  Launch("evo_attention forward (cuda sm80 spread)",
         p.layers > 1 ? StripStreamForwardKernel<T, kTiles, kDim, kBiasBytes, true>
                      : StripStreamForwardKernel<T, kTiles, kDim, kBiasBytes, false>,
         {.blocks = (p.queries + Stream::kQueries - 1) / Stream::kQueries,
          .threads = warps * 32,
          .shared_bytes = static_cast<std::size_t>(Stream::Bytes(warps)),
          .early = true,
          .columns = p.heads,
          .layers = p.layers},
         stream, p);
  return true;
}

// Launches it where it can run and is the faster one, or says no: with one tile of queries there is
// nothing to overlap.
template <typename T, int kTiles, int kDim>
bool LaunchStripStreamForward(const StripProblem& p, int shared_limit, cudaStream_t stream) {
  if constexpr (kTiles > 1) {
    if (!BeginsEarly()) return false;
    if (p.bias_kind == TermKind::kNone) {
      return LaunchStripStream<T, kTiles, kDim, 0>(p, shared_limit, stream);
    }
    if (!p.bias_vectors) return false;
    return p.bias_kind == TermKind::kFloat32
               ? LaunchStripStream<T, kTiles, kDim, 4>(p, shared_limit, stream)
               : LaunchStripStream<T, kTiles, kDim, 2>(p, shared_limit, stream);
  }
  return false;
}

}  // namespace megafold::cuda
