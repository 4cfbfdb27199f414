#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/barrier.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/ptx.cuh"
#include "backends/cuda/sm90/evo_attention_pack.h"
#include "backends/cuda/sm90/evo_attention_pack_terms.cuh"

namespace megafold::cuda {
namespace {

constexpr int kThreads = kPackThreads;
constexpr int kTile = kHopperTile;

// ---- Bias: a block packs 16 queries x 64 keys of two heads, or of four that lie side by side.
// ----

constexpr int kBlockQueries = 16;
// Pairs of keys of eight queries, and single keys of four heads, lie in different banks.
constexpr int kPitch = kTile + 8;
constexpr int kHeadPitch = kBlockQueries * kPitch + 8;

// Which dimension of the bias neighbouring threads read along.
enum class Fastest { kKey, kQuery, kHead };

constexpr int BlockHeads(Fastest fastest) { return fastest == Fastest::kHead ? 4 : 2; }

template <Fastest kFastest>
struct BiasElement {
  int query, key, head = 0;
  __device__ __forceinline__ explicit BiasElement(int index) {
    if constexpr (kFastest == Fastest::kHead) {
      head = index % BlockHeads(kFastest);
      index /= BlockHeads(kFastest);
    }
    if constexpr (kFastest == Fastest::kQuery) {
      query = index % kBlockQueries;
      key = index / kBlockQueries % kTile;
    } else {
      key = index % kTile;
      query = index / kTile % kBlockQueries;
    }
    if constexpr (kFastest != Fastest::kHead) head = index / (kBlockQueries * kTile);
  }
  __device__ __forceinline__ int Place() const { return head * kHeadPitch + query * kPitch + key; }
};

template <typename T, Fastest kFastest>
__global__ __launch_bounds__(kThreads) void PackBiasKernel(
    const __grid_constant__ AttentionProblem p, float query_unit, float key_unit, int query_tiles,
    int key_tiles, float* by_queries, float* by_keys) {
  LetNextBegin();
  constexpr int kBlockHeads = BlockHeads(kFastest);
  __shared__ float tile[kBlockHeads * kHeadPitch];
  const int thread = static_cast<int>(threadIdx.x);
  const int parts = query_tiles * (kTile / kBlockQueries);
  const int head_blocks = (p.heads + kBlockHeads - 1) / kBlockHeads;
  int block = static_cast<int>(blockIdx.x);  // divisions of 64 bits are slow
  const int key_tile = block % key_tiles;
  block /= key_tiles;
  const int part = block % parts;
  block /= parts;
  const int first_head = block % head_blocks * kBlockHeads;
  const std::int64_t group = block / head_blocks;
  const int heads = min(kBlockHeads, p.heads - first_head);
  const int first_query = part * kBlockQueries;
  const int first_key = key_tile * kTile;

  const T* const bias = static_cast<const T*>(p.bias.data) + group * p.bias.group +
                        first_head * p.bias.head + first_query * p.bias.query +
                        first_key * p.bias.key;
  // All of a thread's loads are on their way before the first is needed.
  constexpr int kEach = kBlockHeads * kBlockQueries * kTile / kThreads;
  T values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const BiasElement<kFastest> at(i * kThreads + thread);
    const bool inside =
        first_key + at.key < p.keys && first_query + at.query < p.queries && at.head < heads;
    values[i] = inside ? bias[at.head * p.bias.head + at.query * p.bias.query + at.key * p.bias.key]
                       : T(0.0F);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const BiasElement<kFastest> at(i * kThreads + thread);
    tile[at.Place()] = first_key + at.key < p.keys ? static_cast<float>(values[i]) : -kInfinity;
  }
  __syncthreads();

  const int query_tile = first_query / kTile;
  const int part_of_tile = part % (kTile / kBlockQueries);
  for (int head = 0; head < heads; ++head) {
    const std::int64_t matrix = group * p.heads + first_head + head;
    const float* source = tile + head * kHeadPitch;
    const int lane = thread % 32;
    if (by_queries != nullptr) {  // the 16 queries are one warp's rows
      const int v = thread / 32;
      const float* from = source + lane / 4 * kPitch + 8 * v + 2 * (lane % 4);
      const std::int64_t at = (matrix * query_tiles + query_tile) * key_tiles + key_tile;
      reinterpret_cast<float4*>(by_queries)[(at * 8 + v) * 128 + part_of_tile * 32 + lane] =
          InUnits(from[0], from[1], from[8 * kPitch], from[8 * kPitch + 1], query_unit);
    }
    if (by_keys != nullptr) {  // the 16 queries are two groups of eight columns
      const int column = thread / 128;
      const int warp = thread / 32 % 4;
      const float* from = source + (8 * column + 2 * (lane % 4)) * kPitch + 16 * warp + lane / 4;
      const std::int64_t at = (matrix * key_tiles + key_tile) * query_tiles + query_tile;
      reinterpret_cast<float4*>(
          by_keys)[(at * 8 + part_of_tile * 2 + column) * 128 + thread % 128] =
          InUnits(from[0], from[kPitch], from[8], from[kPitch + 8], key_unit);
    }
  }
  WaitForPrevious();
}

template <typename T>
__global__ __launch_bounds__(kThreads) void PackMaskColumnsKernel(
    const __grid_constant__ AttentionProblem p, MaskColumns mask) {
  LetNextBegin();
  mask.PackBlock<T>(p, static_cast<int>(blockIdx.x));
  WaitForPrevious();
}

// ---- Bias and mask for a forward in one kernel: what takes the time is launches and the way of
// the first bytes. ----

template <typename T, typename Bias>
__global__ __launch_bounds__(kThreads) void PackTermsKernel(
    const __grid_constant__ AttentionProblem p, AlignedBias bias, int bias_blocks,
    MaskColumns mask) {
  LetNextBegin();
  const int block = static_cast<int>(blockIdx.x);
  if (block < bias_blocks) {
    bias.PackTile<Bias>(p, block);
  } else {
    mask.PackBlock<T>(p, block - bias_blocks);
  }
  WaitForPrevious();
}

// ---- Statistics: heads fastest, as the usual layout has them. ----

__device__ __forceinline__ float Dot(const uint4& a, const uint4& b, __nv_bfloat16) {
  const auto* x = reinterpret_cast<const __nv_bfloat162*>(&a);
  const auto* y = reinterpret_cast<const __nv_bfloat162*>(&b);
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 u = __bfloat1622float2(x[i]);
    const float2 v = __bfloat1622float2(y[i]);
    sum = fmaf(u.y, v.y, fmaf(u.x, v.x, sum));
  }
  return sum;
}
__device__ __forceinline__ float Dot(const uint4& a, const uint4& b, __half) {
  const auto* x = reinterpret_cast<const __half2*>(&a);
  const auto* y = reinterpret_cast<const __half2*>(&b);
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 u = __half22float2(x[i]);
    const float2 v = __half22float2(y[i]);
    sum = fmaf(u.y, v.y, fmaf(u.x, v.x, sum));
  }
  return sum;
}

// One block for 64 queries of one row: what it packs leaves shared memory in whole lines. kVectors
// loads of 16 bytes cover D with four threads; those of kBatch queries are in flight at once.
template <typename T, int kVectors>
__global__ __launch_bounds__(kThreads) void PackStatisticsKernel(
    const __grid_constant__ AttentionProblem p, int query_tiles, uint4* statistics) {
  LetNextBegin();
  constexpr int kLanes = 4;   // threads that share a query
  constexpr int kHeads = 16;  // at once
  constexpr int kBatch = 2;
  constexpr int kStep = kThreads / kLanes;
  __shared__ uint4 packed[kHeads][kTile];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;
  const int tile = static_cast<int>(blockIdx.x) % query_tiles;
  const int row_index = static_cast<int>(blockIdx.x) / query_tiles;
  const int batch = row_index / static_cast<int>(p.batch_rows);
  const RowIndex at(batch, row_index - batch * static_cast<int>(p.batch_rows));
  const std::int64_t row = row_index;
  for (int first = 0; first < p.heads; first += kHeads) {
    const int heads = min(kHeads, p.heads - first);
    const int count = heads * kTile;
    for (int start = thread / kLanes; start < count; start += kBatch * kStep) {
      uint4 out[kBatch][kVectors] = {};
      uint4 dout[kBatch][kVectors] = {};
      float lse[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int item = start + i * kStep;
        const int head = first + item % heads;
        const int query = tile * kTile + item / heads;
        lse[i] = kInfinity;
        if (item >= count || query >= p.queries) continue;
        const T* from = RowBase<const T>(p.out, at, head) + query * p.out.token;
        const T* dfrom = RowBase<const T>(p.dout, at, head) + query * p.dout.token;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int d = (v * kLanes + lane) * 8;
          if (d >= p.dim) break;
          out[i][v] = *reinterpret_cast<const uint4*>(from + d);
          dout[i][v] = *reinterpret_cast<const uint4*>(dfrom + d);
        }
        lse[i] = p.lse[StatisticBase(p, at, head) + query];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int item = start + i * kStep;
        float delta = 0.0F;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) delta += Dot(out[i][v], dout[i][v], T{});
#pragma unroll
        for (int offset = 1; offset < kLanes; offset *= 2) {
          delta += __shfl_xor_sync(0xFFFFFFFFU, delta, offset);
        }
        if (lane != 0 || item >= count) continue;
        const float bound = 1e30F;
        const Parts l(fmaxf(fminf(-lse[i] / p.scale, bound), -bound));
        const Parts d(-delta);
        packed[item % heads][item / heads] = make_uint4(
            Pack(l.value[0], l.value[1], __nv_bfloat16{}),
            Pack(l.value[2], d.value[0], __nv_bfloat16{}),
            Pack(d.value[1], d.value[2], __nv_bfloat16{}), Pack(1.0F, 1.0F, __nv_bfloat16{}));
      }
    }
    __syncthreads();
    uint4* const to = statistics + ((row * p.heads + first) * query_tiles + tile) * kTile;
    for (int i = thread; i < count; i += kThreads) {
      const int head = i / kTile;
      to[static_cast<std::int64_t>(head) * query_tiles * kTile + i % kTile] =
          packed[head][i % kTile];
    }
    __syncthreads();
  }
  WaitForPrevious();
}

int Tiles(int length) { return (length + kTile - 1) / kTile; }

std::int64_t MaskBatches(const AttentionProblem& p) { return p.mask.batch == 0 ? 1 : p.batches; }
std::int64_t MaskRows(const AttentionProblem& p) { return p.mask.row == 0 ? 1 : p.batch_rows; }
// Without a mask the packed bias already keeps keys past the last one out.
bool NeedsMask(const AttentionProblem& p) {
  return p.mask.kind != TermKind::kNone || (p.bias.kind == TermKind::kNone && p.keys % kTile != 0);
}

// Of no pieces where no mask is needed.
MaskColumns MakeMaskColumns(const AttentionProblem& p, void* tiles) {
  if (!NeedsMask(p)) return {};
  MaskColumns mask;
  mask.rows = static_cast<int>(MaskRows(p));
  mask.length = Tiles(p.keys) * kTile;
  mask.row_pieces = (mask.length + MaskColumns::kPiece - 1) / MaskColumns::kPiece;
  mask.pieces = static_cast<int>(MaskBatches(p)) * mask.rows * mask.row_pieces;
  mask.columns = static_cast<uint4*>(tiles);
  return mask;
}

PackedMaskColumns Describe(const AttentionProblem& p, const void* tiles) {
  const std::int64_t row_tiles = Tiles(p.keys);
  return {static_cast<const char*>(tiles), p.mask.batch == 0 ? 0 : MaskRows(p) * row_tiles,
          p.mask.row == 0 ? 0 : row_tiles};
}

template <typename T>
void LaunchStatistics(const AttentionProblem& p, void* statistics, LaunchChain& chain) {
  const auto launch = [&](auto kernel) {
    chain.Add("evo_attention statistics (cuda sm90a)", kernel,
              {p.batches * p.batch_rows * Tiles(p.queries), kThreads}, p, Tiles(p.queries),
              static_cast<uint4*>(statistics));
  };
  if (p.dim <= 32) return launch(PackStatisticsKernel<T, 1>);
  launch(PackStatisticsKernel<T, 2>);
}

}  // namespace

std::size_t PackedBiasBytes(const AttentionProblem& p) {
  if (p.bias.kind == TermKind::kNone) return 0;
  return static_cast<std::size_t>(p.groups * p.heads) * static_cast<std::size_t>(Tiles(p.queries)) *
         static_cast<std::size_t>(Tiles(p.keys)) * kTile * kTile * sizeof(float);
}

std::size_t PackedMaskColumnsBytes(const AttentionProblem& p) {
  if (!NeedsMask(p)) return 0;
  return static_cast<std::size_t>(MaskBatches(p) * MaskRows(p)) *
         static_cast<std::size_t>(Tiles(p.keys)) * kMaskColumnsBytes;
}

std::size_t PackedStatisticsBytes(const AttentionProblem& p) {
  return static_cast<std::size_t>(p.batches * p.batch_rows * p.heads) *
         static_cast<std::size_t>(Tiles(p.queries)) * kTile * sizeof(uint4);
}

void PackBias(const AttentionProblem& p, DType type, float query_unit, float* by_queries,
              float key_unit, float* by_keys, LaunchChain& chain) {
  if (p.bias.kind == TermKind::kNone || (by_queries == nullptr && by_keys == nullptr)) return;
  const int query_tiles = Tiles(p.queries);
  const int key_tiles = Tiles(p.keys);
  const auto launch = [&]<Fastest kFastest>(std::integral_constant<Fastest, kFastest>) {
    constexpr int kBlockHeads = BlockHeads(kFastest);
    const std::int64_t blocks = p.groups * ((p.heads + kBlockHeads - 1) / kBlockHeads) *
                                query_tiles * (kTile / kBlockQueries) * key_tiles;
    const auto add = [&](auto kernel) {
      chain.Add("evo_attention bias packing (cuda sm90a)", kernel, {blocks, kThreads}, p,
                query_unit, key_unit, query_tiles, key_tiles, by_queries, by_keys);
    };
    if (p.bias.kind == TermKind::kFloat32) return add(PackBiasKernel<float, kFastest>);
    if (type == DType::kBFloat16) return add(PackBiasKernel<__nv_bfloat16, kFastest>);
    add(PackBiasKernel<__half, kFastest>);
  };
  if (p.bias.key == 1) return launch(std::integral_constant<Fastest, Fastest::kKey>{});
  if (p.bias.head == 1) return launch(std::integral_constant<Fastest, Fastest::kHead>{});
  if (p.bias.query == 1) return launch(std::integral_constant<Fastest, Fastest::kQuery>{});
  launch(std::integral_constant<Fastest, Fastest::kKey>{});
}

PackedMaskColumns PackMaskColumns(const AttentionProblem& p, DType type, void* tiles,
                                  LaunchChain& chain) {
  const MaskColumns mask = MakeMaskColumns(p, tiles);
  if (mask.pieces == 0) return {};
  auto launch = [&](auto kernel) {
    chain.Add("evo_attention mask packing (cuda sm90a)", kernel, {mask.Blocks(), kThreads}, p,
              mask);
  };
  if (type == DType::kBFloat16) {
    launch(PackMaskColumnsKernel<__nv_bfloat16>);
  } else {
    launch(PackMaskColumnsKernel<__half>);
  }
  return Describe(p, tiles);
}

PackedMaskColumns PackTerms(const AttentionProblem& p, DType type, float unit, float* by_queries,
                            void* mask_tiles, LaunchChain& chain) {
  if (p.bias.kind == TermKind::kNone || !p.bias.aligned) {
    const PackedMaskColumns packed = PackMaskColumns(p, type, mask_tiles, chain);
    PackBias(p, type, unit, by_queries, 0, nullptr, chain);
    return packed;
  }
  const AlignedBias bias{Tiles(p.queries), Tiles(p.keys), unit,
                         reinterpret_cast<float4*>(by_queries)};
  const std::int64_t bias_blocks = p.groups * p.heads * bias.query_tiles * bias.key_tiles;
  const MaskColumns mask = MakeMaskColumns(p, mask_tiles);
  const auto launch = [&](auto kernel) {
    chain.Add("evo_attention packing (cuda sm90a)", kernel, {bias_blocks + mask.Blocks(), kThreads},
              p, bias, static_cast<int>(bias_blocks), mask);
  };
  const auto launch_type = [&]<typename T>(T) {
    if (p.bias.kind == TermKind::kFloat32) return launch(PackTermsKernel<T, float>);
    launch(PackTermsKernel<T, T>);
  };
  if (type == DType::kBFloat16) {
    launch_type(__nv_bfloat16{});
  } else {
    launch_type(__half{});
  }
  return mask.pieces == 0 ? PackedMaskColumns{} : Describe(p, mask_tiles);
}

void PackStatistics(const AttentionProblem& p, DType type, void* statistics, LaunchChain& chain) {
  if (type == DType::kBFloat16) return LaunchStatistics<__nv_bfloat16>(p, statistics, chain);
  LaunchStatistics<__half>(p, statistics, chain);
}

}  // namespace megafold::cuda
