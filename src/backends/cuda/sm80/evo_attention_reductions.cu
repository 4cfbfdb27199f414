// The two small kernels around EvoAttention's backward: delta = rowsum(dO * O), and the sum of
// dBias parts in a fixed order.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/sm80/evo_attention_common.cuh"

namespace megafold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // threads that share a query

template <typename T>
__global__ __launch_bounds__(kThreads) void DeltaKernel(const __grid_constant__ AttentionParams p) {
  const std::int64_t count = p.batches * p.batch_rows * p.queries * p.heads;
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float sum = 0.0F;
  std::int64_t statistic = 0;
  if (index < count) {
    // Heads vary fastest, then queries: neighbours in memory for the usual layout.
    const int head = static_cast<int>(index % p.heads);
    std::int64_t rest = index / p.heads;
    const std::int64_t query = rest % p.queries;
    rest /= p.queries;
    const std::int64_t row = rest % p.batch_rows;
    const std::int64_t batch = rest / p.batch_rows;
    auto start = [&](const AttentionOperand& x) {
      return static_cast<const T*>(x.data) + batch * x.batch + row * x.row + query * x.token +
             head * x.head;
    };
    const T* out = start(p.out);
    const T* dout = start(p.dout);
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    if (p.out.aligned && p.dout.aligned) {
      for (int d = lane * kVector; d < p.dim; d += kLanes * kVector) {
        alignas(16) T a[kVector];
        alignas(16) T b[kVector];
        *reinterpret_cast<uint4*>(a) = *reinterpret_cast<const uint4*>(out + d);
        *reinterpret_cast<uint4*>(b) = *reinterpret_cast<const uint4*>(dout + d);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          sum = fmaf(static_cast<float>(a[i]), static_cast<float>(b[i]), sum);
        }
      }
    } else {
      for (int d = lane; d < p.dim; d += kLanes) {
        sum = fmaf(static_cast<float>(out[d]), static_cast<float>(dout[d]), sum);
      }
    }
    statistic = ((batch * p.batch_rows + row) * p.heads + head) * p.queries + query;
  }
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
  }
  if (index < count && lane == 0) p.delta[statistic] = sum;
}

constexpr int kFewKeysWarps = kFewKeys / 16;

// c += a b^T, both of 16 rows.
template <typename T>
__device__ __forceinline__ void MultiplyTransposed(float (&c)[2][4], const typename Mma<T>::A& a,
                                                   const typename Mma<T>::A& b) {
  Mma<T>::Run(c[0], a, {{b.r[0], b.r[2]}});
  Mma<T>::Run(c[1], a, {{b.r[1], b.r[3]}});
}

// The same number as sum_j p_j dp_j / sum_j p_j, which does not see the rounding of O to 16 bits:
// that shows where few keys make p large. A block has 16 queries of one head and row, a warp of it
// 16 keys; everything is read straight into registers, so that memory is waited for once. dp is
// what the kernels that take delta off it compute, bit for bit: with one key nothing is left.
template <typename T>
__global__ __launch_bounds__(kFewKeysWarps * 32) void FewKeysDeltaKernel(
    const __grid_constant__ AttentionParams p) {
  __shared__ float2 parts[kFewKeysWarps][16];  // sums of p and p dp
  const auto tiles = static_cast<unsigned>((p.queries + 15) / 16);
  const unsigned heads_before = blockIdx.x / tiles;
  const unsigned row = heads_before / p.heads;
  const auto batch_rows = static_cast<unsigned>(p.batch_rows);
  const int head = static_cast<int>(heads_before - row * p.heads);
  const RowIndex at(row / batch_rows, row % batch_rows);
  const int first_query = static_cast<int>(blockIdx.x % tiles) * 16;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_key = warp * 16;
  const std::int64_t statistic = StatisticBase(p, at, head);
  const std::int64_t bias = at.batch * (p.groups == 1 ? 0 : p.bias.group) + head * p.bias.head;

  float terms[2][4], lse[2];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int query = first_query + i / 2 % 2 * 8 + LaneId() / 4;
    const int key = first_key + i / 4 * 8 + LaneId() % 4 * 2 + i % 2;
    const bool inside = query < p.queries && key < p.keys;
    lse[i / 2 % 2] = query < p.queries ? p.lse[statistic + query] : kInfinity;
    terms[i / 4][i % 4] = inside ? BiasTerm<T>(p, bias + query * p.bias.query + key * p.bias.key) +
                                       MaskTerm<T>(p, MaskBase(p, at), key)
                                 : -kInfinity;
  }
  float s[2][4] = {};
  float dp[2][4] = {};
#pragma unroll 4
  for (int d = 0; d < p.dim; d += 16) {
    const auto load = [&](const AttentionOperand& operand, int first, int count) {
      return Mma<T>::LoadAGlobal(RowBase<const T>(operand, at, head) + first * operand.token + d,
                                 operand.token, count - first, p.dim - d, operand.aligned);
    };
    MultiplyTransposed<T>(s, load(p.q, first_query, p.queries), load(p.k, first_key, p.keys));
    MultiplyTransposed<T>(dp, load(p.dout, first_query, p.queries), load(p.v, first_key, p.keys));
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float2 sum = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = i / 2, at_half = half * 2 + i % 2;
      const float probability =
          ExpDifference<T>(fmaf(s[n][at_half], p.scale, terms[n][at_half]), lse[half]);
      sum.x += probability;
      sum.y = fmaf(probability, dp[n][at_half], sum.y);
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      sum.x += __shfl_xor_sync(0xFFFFFFFFU, sum.x, offset);
      sum.y += __shfl_xor_sync(0xFFFFFFFFU, sum.y, offset);
    }
    if (LaneId() % 4 == 0) parts[warp][half * 8 + LaneId() / 4] = sum;
  }
  __syncthreads();
  const int query = static_cast<int>(threadIdx.x);
  if (query >= 16 || first_query + query >= p.queries) return;
  float2 sum = {};
#pragma unroll
  for (int part = 0; part < kFewKeysWarps; ++part) {
    sum.x += parts[part][query].x;
    sum.y += parts[part][query].y;
  }
  p.delta[statistic + first_query + query] = sum.x > 0.0F ? sum.y / sum.x : 0.0F;
}

__global__ __launch_bounds__(kThreads) void SumPartsKernel(const float* parts, float* out,
                                                           std::int64_t parts_count,
                                                           std::int64_t count) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count) return;
  constexpr int kBatch = 16;  // parts that are on their way together
  float sum = 0.0F;
#pragma unroll 1
  for (std::int64_t first = 0; first < parts_count; first += kBatch) {
    float part[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      part[i] = first + i < parts_count ? parts[(first + i) * count + index] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) sum += part[i];
  }
  out[index] = sum;
}

}  // namespace

void AttentionDelta(const AttentionParams& p, DType type, cudaStream_t stream) {
  const auto launch = [&](auto kernel, std::int64_t blocks, int threads) {
    LaunchKernel("evo_attention delta (cuda)", kernel, blocks, threads, 0, stream, p);
  };
  const std::int64_t heads = p.batches * p.batch_rows * p.heads;
  if (p.keys > 0 && p.keys <= kFewKeys && type != DType::kFloat32) {
    const std::int64_t blocks = heads * ((p.queries + 15) / 16);
    const bool half = type == DType::kFloat16;
    return launch(half ? FewKeysDeltaKernel<__half> : FewKeysDeltaKernel<__nv_bfloat16>, blocks,
                  kFewKeysWarps * 32);
  }
  const std::int64_t blocks = (heads * p.queries * kLanes + kThreads - 1) / kThreads;
  if (type == DType::kBFloat16) return launch(DeltaKernel<__nv_bfloat16>, blocks, kThreads);
  if (type == DType::kFloat16) return launch(DeltaKernel<__half>, blocks, kThreads);
  launch(DeltaKernel<float>, blocks, kThreads);
}

void SumParts(const float* parts, float* out, std::int64_t parts_count, std::int64_t count,
              cudaStream_t stream) {
  LaunchKernel("evo_attention dBias sum (cuda)", SumPartsKernel, (count + kThreads - 1) / kThreads,
               kThreads, 0, stream, parts, out, parts_count, count);
}

}  // namespace megafold::cuda
