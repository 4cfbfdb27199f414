// What the Hopper EvoAttention kernels are told, and the functions that launch them.
//
// Q, K, V and dO are read by tensor copies. Bias, mask and the statistics of the forward are packed
// beforehand into the order and the units that the kernels read them in (evo_attention_pack.h), so
// that p = 2^(scale log2(e) <q, k> + bias + mask - lse) takes no other products.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/attention/problem.h"
#include "backends/cuda/device/launch.cuh"
#include "megafold/core/dtype.h"

namespace megafold::cuda {

// Queries and keys of a tile.
inline constexpr int kHopperTile = 64;

// Terms that are added to a row's scores, as columns of a product (evo_attention_pack.h): a tile of
// 64 keys is 1 KiB, row r of batch b starts at tile b * batch + r * row. A row that is shared has
// stride 0.
inline constexpr int kMaskColumnsBytes = kHopperTile * 16;
struct PackedMaskColumns {
  const char* tiles = nullptr;  // null: nothing to add in any tile
  std::int64_t batch = 0, row = 0;
};

// Elements of D in a row of a copied box: all of the padded D, or for 48 a strip of 16, which packs
// a tile into three quarters of what rows of 64 would take.
constexpr int BoxColumns(int padded_dim) { return padded_dim == 48 ? 16 : padded_dim; }

struct HopperAttentionParams : AttentionProblem {
  // Over (D, token, head, row, batch), boxes of (BoxColumns, 64, 1, 1, 1): rows of 32, 64 or 128
  // bytes, swizzled over their length, zeros past D and past the last token.
  CUtensorMap q_map{}, k_map{}, v_map{}, out_map{}, dout_map{};  // out_map: forward
  CUtensorMap dq_map{}, dk_map{}, dv_map{};                      // of what is wanted
  int query_tiles = 0, key_tiles = 0;
  float scale_log2 = 1;                    // scale * log2(e)
  const float* bias_by_queries = nullptr;  // tiles whose rows are queries; null without a bias
  const float* bias_by_keys = nullptr;     // tiles whose rows are keys
  PackedMaskColumns mask_columns;
  const std::uint16_t* statistics = nullptr;  // bfloat16 [B, S, H, query_tiles, 64, 8]
  float* dbias = nullptr;                     // [chunks, groups, H, Nq, Nk]
  int row_chunks = 1;      // parts that a group's rows are cut into for dQ and dBias
  int key_blocks = 1;      // blocks that share the keys out for dQ and dBias
  int consumer_tiles = 0;  // tiles of keys that each of their warpgroups has
  bool packed = true;      // dQ and dBias: nothing is being packed any more when they begin
};

// The kernels of one storage type and one padded head dimension (32, 48 or 64). Each joins `chain`
// and throws kDevice when the launch fails.
template <DType kType, int kDim>
struct HopperAttention {
  static void Forward(const HopperAttentionParams& params, LaunchChain& chain);
  static void BackwardKeys(const HopperAttentionParams& params, LaunchChain& chain);  // dK, dV
  // dQ, and dBias or its parts where params.dbias is set.
  static void BackwardQueries(const HopperAttentionParams& params, LaunchChain& chain);
};

// How dQ and dBias share out keys: warpgroups of a block, the most blocks, and the tiles of keys
// whose bias and dBias each warpgroup can keep. A block that has all keys needs no room for the
// sums of others; with a padded D of 48 that makes the difference.
inline constexpr int kQueriesConsumers = 2;
inline constexpr int kMaxKeyBlocks = 8;
constexpr int BiasGradientTiles(int padded_dim, bool alone) {
  return padded_dim <= 32 || (padded_dim == 48 && alone) ? 3 : 2;
}

}  // namespace megafold::cuda
