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

// The same number as sum_j p_j dp_j / sum_j p_j, which does not see the rounding of O to 16 bits:
// that shows where few keys make p large. Costs two products of D per score, outside the matrix
// units.
template <typename T>
__global__ __launch_bounds__(kThreads) void FewKeysDeltaKernel(
    const __grid_constant__ AttentionParams p) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  // Every lane of a warp takes part in the shuffles; those past the end repeat the last query.
  const std::int64_t count = p.batches * p.batch_rows * p.queries * p.heads;
  const std::int64_t item = min(index, count - 1);
  const int head = static_cast<int>(item % p.heads);
  const int query = static_cast<int>(item / p.heads % p.queries);
  const std::int64_t row = item / p.heads / p.queries;
  const RowIndex at(row / p.batch_rows, row % p.batch_rows);
  const T* q = RowBase<const T>(p.q, at, head) + query * p.q.token;
  const T* dout = RowBase<const T>(p.dout, at, head) + query * p.dout.token;
  const T* k = RowBase<const T>(p.k, at, head);
  const T* v = RowBase<const T>(p.v, at, head);
  const std::int64_t bias =
      at.batch * (p.groups == 1 ? 0 : p.bias.group) + head * p.bias.head + query * p.bias.query;
  const std::int64_t statistic = StatisticBase(p, at, head) + query;
  const float lse = p.lse[statistic];
  float sum = 0.0F;
  float total = 0.0F;
  for (int key = 0; key < p.keys; ++key, k += p.k.token, v += p.v.token) {
    float score = 0.0F;
    float dp = 0.0F;
    for (int d = lane; d < p.dim; d += kLanes) {
      score = fmaf(static_cast<float>(q[d]), static_cast<float>(k[d]), score);
      dp = fmaf(static_cast<float>(dout[d]), static_cast<float>(v[d]), dp);
    }
#pragma unroll
    for (int offset = 1; offset < kLanes; offset *= 2) {
      score += __shfl_xor_sync(0xFFFFFFFFU, score, offset);
      dp += __shfl_xor_sync(0xFFFFFFFFU, dp, offset);
    }
    score = fmaf(score, p.scale, BiasTerm<T>(p, bias + key * p.bias.key)) +
            MaskTerm<T>(p, MaskBase(p, at), key);
    const float probability = ExpDifference<T>(score, lse);
    total += probability;
    sum = fmaf(probability, dp, sum);
  }
  if (index < count && lane == 0) p.delta[statistic] = total > 0.0F ? sum / total : 0.0F;
}

__global__ __launch_bounds__(kThreads) void SumPartsKernel(const float* parts, float* out,
                                                           std::int64_t parts_count,
                                                           std::int64_t count) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count) return;
  float sum = 0.0F;
#pragma unroll 4
  for (std::int64_t part = 0; part < parts_count; ++part) sum += parts[part * count + index];
  out[index] = sum;
}

}  // namespace

void AttentionDelta(const AttentionParams& p, DType type, cudaStream_t stream) {
  const std::int64_t count = p.batches * p.batch_rows * p.queries * p.heads;
  const std::int64_t blocks = (count * kLanes + kThreads - 1) / kThreads;
  auto launch = [&](auto kernel) {
    LaunchKernel("evo_attention delta (cuda)", kernel, blocks, kThreads, 0, stream, p);
  };
  constexpr int kFewKeys = 64;
  if (count > 0 && p.keys > 0 && p.keys <= kFewKeys && type != DType::kFloat32) {
    if (type == DType::kBFloat16) return launch(FewKeysDeltaKernel<__nv_bfloat16>);
    return launch(FewKeysDeltaKernel<__half>);
  }
  if (type == DType::kBFloat16) return launch(DeltaKernel<__nv_bfloat16>);
  if (type == DType::kFloat16) return launch(DeltaKernel<__half>);
  launch(DeltaKernel<float>);
}

void SumParts(const float* parts, float* out, std::int64_t parts_count, std::int64_t count,
              cudaStream_t stream) {
  LaunchKernel("evo_attention dBias sum (cuda)", SumPartsKernel, (count + kThreads - 1) / kThreads,
               kThreads, 0, stream, parts, out, parts_count, count);
}

}  // namespace megafold::cuda
