// dBias of the groups of rows that several teams had, from their parts.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/short_keys/evo_attention_params.h"

namespace megafold::cuda {
namespace {

constexpr int kThreads = 256;

// A block has one head of one group, in slices of kThreads elements.
__global__ __launch_bounds__(kThreads) void SumBiasPartsKernel(
    const __grid_constant__ ShortKeysParams p, int slices) {
  const std::int64_t strip = static_cast<int>(blockIdx.x) / slices;
  const std::int64_t group = strip / p.heads;
  const int head = static_cast<int>(strip % p.heads);
  const std::int64_t first = p.ranges.TeamOf(group * p.rows);
  const std::int64_t last = p.ranges.TeamOf((group + 1) * p.rows - 1);
  if (first == last) return;  // written as a whole
  const std::int64_t count = static_cast<std::int64_t>(p.queries) * p.keys;
  const std::int64_t element =
      static_cast<std::int64_t>(static_cast<int>(blockIdx.x) % slices) * kThreads + threadIdx.x;
  if (element >= count) return;
  float sum = 0.0F;
  for (std::int64_t team = first; team <= last; ++team) {
    const std::int64_t slot = PartSlot(team, p.ranges.Begin(team), p.rows, group);
    sum += p.dbias_parts[(slot * p.heads + head) * count + element];
  }
  p.dbias[strip * count + element] = sum;
}

}  // namespace

void SumBiasParts(const ShortKeysParams& p, cudaStream_t stream) {
  const std::int64_t count = static_cast<std::int64_t>(p.queries) * p.keys;
  const auto slices = static_cast<int>((count + kThreads - 1) / kThreads);
  LaunchKernel("evo_attention dBias sum (cuda sm80 short)", SumBiasPartsKernel,
               p.groups * p.heads * slices, kThreads, 0, stream, p, slices);
}

}  // namespace megafold::cuda
