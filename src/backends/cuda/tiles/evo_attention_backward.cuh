// Backward of EvoAttention in tiles of 64 queries and 64 keys, in one pass: five products and one
// exponential a score. A block owns 64 keys of one head and row and walks over the queries, or over
// a part of them; eight warps share a tile of scores. p and ds go through shared memory, from where
// dV, dK and dQ take them as operands. What several blocks give of a gradient is left in parts that
// a second kernel adds. Every copy has one place in the code: most of it is executed a few times,
// and waits for its instructions.
//
// With one tile of keys delta is the sum of p dp over that of p, and a block walks over several
// rows that share a bias if their parts of dBias would take too much memory.
#pragma once

#include "backends/cuda/tiles/evo_attention_parts.cuh"
#include "backends/cuda/tiles/evo_attention_scores.cuh"

namespace megafold::cuda {

// A warp's 32 keys of an operand, as right operands of products over a vector's elements.
template <typename T, int kDim>
struct TileKeys {
  typename Mma<T>::B b[kDim / 16][4];

  __device__ __forceinline__ void Load(const T* tile) {
    constexpr int kPitch = kTilePitch<T, kDim>;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        Mma<T>::template LoadBByColumn<kPitch>(b[d][n], b[d][n + 1],
                                               tile + n * 8 * kPitch + d * 16);
      }
    }
  }
  // s += the products with 16 rows.
  __device__ __forceinline__ void Multiply(TileScores& s, const T* rows) const {
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      const auto a = Mma<T>::template LoadA<kTilePitch<T, kDim>>(rows + d * 16);
#pragma unroll
      for (int n = 0; n < 4; ++n) Mma<T>::Run(s[0][n], a, b[d][n]);
    }
  }
};

// Whether they stay in registers from tile to tile: shorter vectors' blocks share a multiprocessor,
// and longer ones leave the products no registers to load operands ahead.
template <int kDim>
inline constexpr bool kKeysStay = kDim == 96;

template <typename T, int kDim>
struct TileGradients {
  using Layout = TileLayout<T, kDim>;
  static constexpr int kColumns = kDim / 2;  // of a warp's gradients
  static constexpr int kPitch = Layout::kPitch;
  using Vectors = float[1][kColumns / 8][4];

  const TileParams& p;
  char* shared;
  int warp_query, warp_half;  // also the warp's keys, and its columns of a gradient
  Vectors dk = {}, dv = {};
  TileKeys<T, kDim> k, v;

  __device__ __forceinline__ TileGradients(const TileParams& params, char* memory)
      : p(params),
        shared(memory),
        warp_query(static_cast<int>(threadIdx.x) / 32 % 4 * 16),
        warp_half(static_cast<int>(threadIdx.x) / 128) {}

  __device__ __forceinline__ void LoadKeys() {
    const T* const keys = reinterpret_cast<const T*>(shared) + warp_half * 32 * kPitch;
    k.Load(keys);
    v.Load(keys + kScoreTile * kPitch);
  }

  // p and ds of the tile, of which `queries` exist.
  __device__ __forceinline__ void Scores(TileScores& s, TileScores& dp, const char* stage,
                                         int queries) const {
    const int key = warp_half * 32;
    const T* const q = reinterpret_cast<const T*>(stage + Layout::kQ) + warp_query * kPitch;
    k.Multiply(s, q);
    v.Multiply(dp, q + kScoreTile * kPitch);  // dO
    AddTileTerms<T, Layout::kBiasPitch>(
        s, p,
        stage + Layout::kBias + (warp_query * Layout::kBiasPitch + key) * BiasElementBytes(p.bias),
        reinterpret_cast<const float*>(shared + Layout::kTerms) + key);
    float delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = warp_query + half * 8 + LaneId() / 4;
      const auto* const all = reinterpret_cast<const float*>(stage + Layout::kLse);
      const float lse = query < queries ? all[query] : kInfinity;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = s[0][i / 2][half * 2 + i % 2];
        x = SpreadExp(x, lse);
      }
    }
    if (IsDeltaFromOut(p)) {
      TileDeltaFromOut<T, kDim>(delta, q + kScoreTile * kPitch, q + 2 * kScoreTile * kPitch);
    } else {
      TileDeltaFromScores(delta, s, dp, reinterpret_cast<float2*>(shared + Layout::kSums),
                          warp_query, warp_half);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& x = dp[0][i / 4][i % 4];
      x = s[0][i / 4][i % 4] * (x - delta[i % 4 / 2]);
    }
  }

  // Puts the tile's p and ds into shared memory.
  __device__ __forceinline__ void Put(const TileScores& s, const TileScores& ds) const {
    const int place = warp_query * Layout::kScorePitch + warp_half * 32;
    PutScores<T, Layout::kScorePitch>(reinterpret_cast<T*>(shared + Layout::kP) + place, s);
    PutScores<T, Layout::kScorePitch>(reinterpret_cast<T*>(shared + Layout::kDs) + place, ds);
  }

  // Adds what p and ds in shared memory give to dK and dV, and gives dQ of the warp's queries.
  __device__ __forceinline__ void Multiply(Vectors& dq, const char* stage) {
    constexpr int kScorePitch = Layout::kScorePitch;
    const T* const probability = reinterpret_cast<const T*>(shared + Layout::kP) + warp_query;
    const T* const ds = reinterpret_cast<const T*>(shared + Layout::kDs);
    const T* const q = reinterpret_cast<const T*>(stage) + warp_half * kColumns;
    const T* const keys = reinterpret_cast<const T*>(shared) + warp_half * kColumns;
    const auto add = [](Vectors& c, const typename Mma<T>::A& a, const T* tile) {
      const typename Mma<T>::A operand[1][1] = {{a}};
      MultiplyByColumns<T, 1, 1, kColumns / 8, kPitch>(c, operand, tile);
    };
#pragma unroll
    for (int i = 0; i < kScoreTile; i += 16) {
      add(dv, Mma<T>::template LoadATransposed<kScorePitch>(probability + i * kScorePitch),
          q + (kScoreTile + i) * kPitch);
      add(dk, Mma<T>::template LoadATransposed<kScorePitch>(ds + warp_query + i * kScorePitch),
          q + i * kPitch);
      add(dq, Mma<T>::template LoadA<kScorePitch>(ds + warp_query * kScorePitch + i),
          keys + i * kPitch);
    }
  }

  // Stores `scale` times the warp's rows of a gradient, or in `parts` the block's part of it.
  // `vector` is the first of the tile, of `count`; `part` says which part it is. kStripOrder: so
  // the rows are.
  template <bool kStripOrder>
  __device__ __forceinline__ void Store(const AttentionOperand& to, float* parts, unsigned part,
                                        const TilePlace& place, int vector, int count,
                                        const Vectors& c, float scale) const {
    if (to.data == nullptr) return;
    if (parts != nullptr) {
      auto* const at =
          reinterpret_cast<float4*>(parts) +
          TilePartOffset<kDim>(p, part, place.row, place.head, count, vector / kScoreTile);
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        at[n * 32] = make_float4(c[0][n][0], c[0][n][1], c[0][n][2], c[0][n][3]);
      }
      return;
    }
    const int column = warp_half * kColumns + LaneId() % 4 * 2;
    T* const base = RowBase<T>(to, place.row.At(), place.head) + column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + LaneId() / 4;
      const int mine = vector + warp_query + (kStripOrder ? StripOrder(row) : row);
      if (mine >= count) continue;
      T* const at = base + mine * to.token;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        if (column + n * 8 >= p.dim) continue;
        StorePair(at + n * 8, c[0][n][half * 2] * scale, c[0][n][half * 2 + 1] * scale, true);
      }
    }
  }
};

// One row: the block's queries pass by its keys.
template <typename T, int kDim>
__device__ __forceinline__ void TileBackwardRow(const TileParams& p, char* shared,
                                                const TilePlace& place, float* dbias, bool first) {
  using Layout = TileLayout<T, kDim>;
  char* const stages = shared + Layout::kStages;
  const int stage_bytes = Layout::StageBytes(p);
  TileGradients<T, kDim> gradients(p, shared);
  TileQueries<T, kDim> queries(p, place);
  // Copies are ahead of the tile that is worked on by a stage where there are two.
  const int ahead = (p.stages - 1) * kScoreTile;
  char *now = stages, *next = stages;
#pragma unroll 1
  for (int query = place.first_query - ahead; query < place.last_query; query += kScoreTile) {
    CopyAsyncWait<0>();
    __syncthreads();  // a tile copied ahead is there; what lies where the copies go has been read
    const int coming = query + ahead;
    if (coming == place.first_query) CopyTileKeys<T, kDim>(shared, p, place);
    if (coming < place.last_query) queries.Next(next, p, place, coming);
    CopyAsyncCommit();
    if (ahead > 0) {
      next = next == stages ? stages + stage_bytes : stages;
      if (query < place.first_query) continue;
    } else {
      CopyAsyncWait<0>();
      __syncthreads();
    }
    {
      if (query == place.first_query || !kKeysStay<kDim>) gradients.LoadKeys();
      TileScores s = {}, ds = {};
      gradients.Scores(s, ds, now, p.queries - query);
      gradients.Put(s, ds);
      if (p.dbias != nullptr) {
        const int at_query = query + gradients.warp_query, at_key = gradients.warp_half * 32;
        StoreTileBias(dbias + static_cast<std::int64_t>(at_query) * p.keys + at_key, ds, p.keys,
                      p.queries - at_query, p.keys - place.first_key - at_key, p.dbias_vectors,
                      first);
      }
    }
    __syncthreads();
    typename TileGradients<T, kDim>::Vectors dq = {};
    gradients.Multiply(dq, now);
    gradients.template Store<false>(p.dq, p.dq_parts, place.first_key / kScoreTile, place, query,
                                    p.queries, dq, p.scale);
    if (ahead > 0) now = now == stages ? stages + stage_bytes : stages;
  }
  const auto store = [&](const AttentionOperand& to, float* parts, const auto& c, float scale) {
    gradients.template Store<true>(to, parts, place.first_query / (p.query_tiles * kScoreTile),
                                   place, place.first_key, p.keys, c, scale);
  };
  store(p.dk, p.dk_parts, gradients.dk, p.scale);
  store(p.dv, p.dv_parts, gradients.dv, 1.0F);
}

template <typename T, int kDim>
__global__ __launch_bounds__(kScoreThreads, kDim > 64 ? 1 : 2) void TileBackwardKernel(
    const __grid_constant__ TileParams p) {
  extern __shared__ __align__(128) char shared[];
  const int key_tiles = CountScoreTiles(p.keys);
  const int query_part = static_cast<int>(blockIdx.x) / key_tiles;
  const int first_key = (static_cast<int>(blockIdx.x) - query_part * key_tiles) * kScoreTile;
  const int first_query = query_part * p.query_tiles * kScoreTile;
  const int last_query = min(first_query + p.query_tiles * kScoreTile, p.queries);
  const int head = static_cast<int>(blockIdx.y);
  // A part of dBias has one owner for all the rows of a chunk.
  const auto groups = static_cast<unsigned>(p.groups), rows = static_cast<unsigned>(p.rows);
  const unsigned chunk = groups == 1 ? blockIdx.z : blockIdx.z / groups;
  const unsigned begin = (blockIdx.z - chunk * groups) * rows;  // of the group
  const unsigned first = begin + chunk * p.chunk_rows;
  const unsigned last = begin + min((chunk + 1) * p.chunk_rows, rows);
  float* const dbias =
      p.dbias + (blockIdx.z * p.heads + head) * (static_cast<std::int64_t>(p.queries) * p.keys) +
      first_key;
#pragma unroll 1
  for (unsigned row = first; row < last; ++row) {
    const TilePlace place{SpreadRow(p, row), head, first_key, first_query, last_query};
    TileBackwardRow<T, kDim>(p, shared, place, dbias, row == first);
  }
}

template <typename T, int kDim>
void LaunchTileBackward(const TileParams& p, cudaStream_t stream) {
  Launch("evo_attention backward (cuda sm80 spread)", TileBackwardKernel<T, kDim>,
         {.blocks = CountScoreTiles(p.keys) * p.QueryParts(),
          .threads = kScoreThreads,
          .shared_bytes = static_cast<std::size_t>(TileLayout<T, kDim>::Bytes(p)),
          .columns = p.heads,
          .layers = p.groups * p.chunks},
         stream, p);
  const AllTileParts all(p);
  constexpr int kEach = kDim / 16;
  Launch("evo_attention sums (cuda sm80 spread)", TilePartsKernel<T, kDim>,
         {.blocks = all.dq.Blocks(kEach) + all.dk.Blocks(kEach) + all.dv.Blocks(kEach),
          .threads = kScoreThreads,
          .columns = p.heads,
          .layers = p.batches * p.batch_rows},
         stream, p);
}

}  // namespace megafold::cuda
