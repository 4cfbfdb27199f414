// Bias, mask and forward statistics in the order and units in which the Hopper EvoAttention kernels
// read them.
//
// The bias is multiplied by a unit, log2(e) for scores in units of log2, each order by its own.
// Finite terms stay finite, so that a row of huge negative ones is still a softmax.
//
// A packed tile of bias has 64 queries x 64 keys as a warpgroup holds a 64 x 64 accumulator: thread
// t (warp w = t / 32, lane l = t % 32) finds its d[4 v + i] at ((tile * 8 + v) * 128 + t) * 4 + i,
// which is row 16 w + l / 4 + 8 (i / 2), column 8 v + 2 (l % 4) + i % 2. Keys past the last are
// -inf, queries past the last 0.
//   by queries: rows are queries, tile = ((group * H + h) * query_tiles + qt) * key_tiles + kt
//   by keys:    rows are keys,    tile = ((group * H + h) * key_tiles + kt) * query_tiles + qt
// Mask columns are, for each key, eight bfloat16 {1, 1, 1, high, middle, low, 0, 0}: the middle
// three add up to mask / scale to the precision of float32. A product of sixteen columns, the last
// eight of them zero, with rows {a, b, c, 1, 1, 1, 0, ...} adds mask / scale + (a + b + c) to
// <q, k>.
// Packed statistics are such columns too, for each query {three parts of -lse / scale, three of
// -delta, 1, 1} where delta = sum over D of dO * O: a product with rows {1, 1, 1, 0, 0, 0, high,
// middle} adds -lse / scale and the mask of a key to the scores, one with {0, 0, 0, 1, 1, 1, 0, 0}
// adds -delta. Queries past the end and those without keys have -1e30 for -lse / scale, so that p
// is 0 there: finite, because columns that a product does not want are multiplied by 0.
#pragma once

#include <cstddef>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/sm90/evo_attention_params.h"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

// Bytes of one order of the bias (0 without a bias), of the mask (0 where no tile needs any) and of
// the statistics.
std::size_t PackedBiasBytes(const AttentionProblem& problem);
std::size_t PackedMaskColumnsBytes(const AttentionProblem& problem);
std::size_t PackedStatisticsBytes(const AttentionProblem& problem);

// `type` is the type of Q. Either order may be null. Throws kDevice when a launch fails.
void PackBias(const AttentionProblem& problem, DType type, float query_unit, float* by_queries,
              float key_unit, float* by_keys, LaunchChain& chain);
PackedMaskColumns PackMaskColumns(const AttentionProblem& problem, DType type, void* tiles,
                                  LaunchChain& chain);
// Both for a forward, in one kernel where the bias allows it.
PackedMaskColumns PackTerms(const AttentionProblem& problem, DType type, float unit,
                            float* bias_by_queries, void* mask_tiles, LaunchChain& chain);
// Reads lse, out and dout.
void PackStatistics(const AttentionProblem& problem, DType type, void* statistics,
                    LaunchChain& chain);

}  // namespace megafold::cuda
