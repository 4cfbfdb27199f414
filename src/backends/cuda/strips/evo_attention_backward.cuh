// Backward of EvoAttention for small grids in one pass: five products and one exponential a score.
// A block owns one to three tiles of 16 keys of one head and row; each warp takes all of them and
// strips of 32 queries, 16 at a time. dK and dV are summed over the block's warps; its part of dQ
// goes to workspace, and a second kernel sums those of all blocks. Scores have queries as rows, so
// that bias and dBias are read and stored as vectors; p and ds are transposed in registers for dV
// and dK.
//
// Lane t of four holds of a query keys 4 t to 4 t + 3 of each tile: column c of score tile j (of 8
// columns) is key 4 (c / 2) + 2 j + c % 2. K and V lie in shared memory in that order.
#pragma once

#include <algorithm>

#include "backends/cuda/strips/strips.cuh"

namespace megafold::cuda {

template <typename T, int kTiles, int kDim>
struct StripBackward {
  static constexpr int kKeys = kTiles * 16;
  static constexpr int kOut = (kDim + 7) / 8;           // tiles of a gradient's columns
  static constexpr int kBiasPitch = 16 * (kTiles | 1);  // quads of two rows lie in different banks
  static constexpr int kTileBytes = kKeys * StripTile<kDim>::kRowBytes;
  static constexpr int kKeyBytes = 2 * kTileBytes + kKeys * 4;
  static constexpr int kVectorBytes = kStrip * StripTile<kDim>::kRowBytes;
  static constexpr int kWarpBytes = 3 * kVectorBytes + kStrip * 4 + kStrip * kBiasPitch * 4;
  static constexpr int kSums = 2 * kKeys * kSumPitch<kDim>;  // floats of a warp, over its strip

  static int Bytes(int warps) { return kKeyBytes + warps * std::max(kWarpBytes, kSums * 4); }

  // Where things lie in shared memory.
  struct Shared {
    char *k, *v;
    float* terms;          // what the mask adds
    char* strips;          // of all warps; in the end their sums
    char *q, *dout, *out;  // of the warp
    float* lse;
    char* bias;
    __device__ __forceinline__ Shared(char* base, int warp)
        : k(base),
          v(base + kTileBytes),
          terms(reinterpret_cast<float*>(base + 2 * kTileBytes)),
          strips(base + kKeyBytes),
          q(strips + warp * kWarpBytes),
          dout(q + kVectorBytes),
          out(dout + kVectorBytes),
          lse(reinterpret_cast<float*>(out + kVectorBytes)),
          bias(reinterpret_cast<char*>(lse + kStrip)) {}
    __device__ __forceinline__ float* Sums(int warp) const {
      return reinterpret_cast<float*>(strips) + warp * kSums;
    }
  };
};

// ---- Copies. ----

// Copies the block's K and V in the order of the scores' columns, eight vectors a warp at a time.
template <typename T, int kTiles, int kDim, bool kRows>
__device__ __forceinline__ void CopyStripKeys(
    const StripProblem& p, const typename StripBackward<T, kTiles, kDim>::Shared& to, int warp,
    int warps, int first_key) {
  constexpr int kKeys = StripBackward<T, kTiles, kDim>::kKeys;
  const VectorCopy<kDim> k(StripBase<kRows>(p.k.data, p.k.head, p.row.k), p.k.token, p.keys, p.dim);
  const VectorCopy<kDim> v(StripBase<kRows>(p.v.data, p.v.head, p.row.v), p.v.token, p.keys, p.dim);
#pragma unroll 1
  for (int row = warp * 8; row < kKeys; row += warps * 8) {
    const int key = first_key + StripOrder(row + LaneId() / 4);
    k.Run(to.k, row, key);
    v.Run(to.v, row, key);
  }
}

// Where the copies of a warp's queries come from.
template <typename T, int kTiles, int kDim, bool kRows>
class QueryCopies {
  using Backward = StripBackward<T, kTiles, kDim>;

 public:
  __device__ __forceinline__ QueryCopies(const StripProblem& p, int first_key)
      : q_(StripBase<kRows>(p.q.data, p.q.head, p.row.q), p.q.token, p.queries, p.dim),
        dout_(StripBase<kRows>(p.dout.data, p.dout.head, p.row.dout), p.dout.token, p.queries,
              p.dim),
        out_(StripBase<kRows>(p.out.data, p.out.head, p.row.out), p.out.token, p.queries, p.dim),
        bytes_(p.bias_kind == TermKind::kFloat32 ? 4 : 2) {
    bias_ = StripBase<kRows>(p.bias, p.bias_head, p.row.bias) +
            (first_key * bytes_ + LaneId() % 4 * 16);
  }

  // Copies rows `row` to `row` + 15 of a strip.
  __device__ __forceinline__ void Run(const StripProblem& p, const typename Backward::Shared& to,
                                      int first_query, int row, int first_key) const {
#pragma unroll
    for (int eight = 0; eight < 16; eight += 8) {
      const int query = first_query + row + eight + LaneId() / 4;
      q_.Run(to.q, row + eight, query);
      dout_.Run(to.dout, row + eight, query);
      out_.Run(to.out, row + eight, query);
    }
    if (p.bias_kind != TermKind::kNone) CopyBias(p, to, first_query, row, first_key);
  }

 private:
  // The bias as it is, eight queries at a time.
  __device__ __forceinline__ void CopyBias(const StripProblem& p,
                                           const typename Backward::Shared& to, int first_query,
                                           int row, int first_key) const {
    const int g = LaneId() / 4, t = LaneId() % 4;
    const auto pitch = static_cast<std::uint32_t>(Backward::kBiasPitch * bytes_);
    const std::uint32_t address =
        SharedAddress(to.bias) + static_cast<std::uint32_t>(row + g) * pitch + t * 16;
    const std::uint32_t stride = p.bias_query * static_cast<std::uint32_t>(bytes_);
    // Vectors of 16 bytes in a row: of the tile, and inside (keys % 8 == 0).
    const int vectors = Backward::kKeys * bytes_ / 16;
    const int inside = (p.keys - first_key) * bytes_ / 16;
#pragma unroll
    for (int i = 0; i < kTiles * 4; i += 4) {
      const int valid = i + t < inside ? 16 : 0;
      if (i + t >= vectors) break;
#pragma unroll
      for (int eight = 0; eight < 16; eight += 8) {
        const int query = min(first_query + row + eight + g, p.queries - 1);
        CopyAsync16(address + eight * pitch + i * 16, bias_ + VectorOffset(query, stride) + i * 16,
                    valid);
      }
    }
  }

  VectorCopy<kDim> q_, dout_, out_;
  int bytes_;  // of an element of the bias
  const char* bias_;
};

// The bias of four keys of a query.
template <typename T>
__device__ __forceinline__ float4 ReadStripBias(const StripProblem& p, const char* bias, int at) {
  if (p.bias_kind == TermKind::kFloat32) return *reinterpret_cast<const float4*>(bias + at * 4);
  if (p.bias_kind == TermKind::kNone) return make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  const auto* const from = reinterpret_cast<const T*>(bias) + at;
  const float2 low = ReadPair(from), high = ReadPair(from + 2);
  return make_float4(low.x, low.y, high.x, high.y);
}

// ---- A tile of 16 queries. ----

// delta = <dO, O> of rows g and g + 8: diagonals of dO O^T.
template <typename T, int kDim>
__device__ __forceinline__ void TileDelta(float (&delta)[2], const RowFragments<T, kDim>& dout,
                                          const char* out, int row) {
  const int g = LaneId() / 4;
  const TransposedFragments<T, kDim> columns(out, row);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float c[4] = {};
    MultiplyStripVectors(c, dout, columns, half);
    // Row g's element of column g lies in the quad's lane g / 2.
    const float mine = g % 2 == 0 ? c[half * 2] : c[half * 2 + 1];
    delta[half] = __shfl_sync(0xFFFFFFFFU, mine, g * 4 + g / 2);
  }
}

// p = exp(scale s + bias + mask - lse) and ds = p (dp - delta) of a lane's keys of one query.
__device__ __forceinline__ void StripGradient(float (&s)[2][4], float (&ds)[2][4], int half,
                                              const float4& bias, const float4& term, float scale,
                                              float lse, float delta) {
  const float add[4] = {bias.x + term.x, bias.y + term.y, bias.z + term.z, bias.w + term.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float& x = s[i / 2][half * 2 + i % 2];
    float& y = ds[i / 2][half * 2 + i % 2];
    x = StripExp(fmaf(x, scale, add[i]), lse);
    y = x * (y - delta);
  }
}

// Stores ds of four keys of a query, of which `left` exist.
__device__ __forceinline__ void StoreStripBiasGradient(float* to, bool vectors, int left,
                                                       const float (&ds)[2][4], int half) {
  if (vectors) {
    if (left > 0) {
      *reinterpret_cast<float4*>(to) =
          make_float4(ds[0][half * 2], ds[0][half * 2 + 1], ds[1][half * 2], ds[1][half * 2 + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) to[i] = ds[i / 2][half * 2 + i % 2];
    }
  }
}

// The transposed of an A fragment.
template <typename T>
__device__ __forceinline__ typename Mma<T>::A Transposed(const typename Mma<T>::A& a) {
  return {{TransposeMatrix(a.r[0]), TransposeMatrix(a.r[2]), TransposeMatrix(a.r[1]),
           TransposeMatrix(a.r[3])}};
}

template <typename T, int kTiles, int kDim, bool kRows>
struct StripGradients {
  static constexpr int kOut = StripBackward<T, kTiles, kDim>::kOut;
  float dk[kTiles][kOut][4] = {}, dv[kTiles][kOut][4] = {};

  // Adds 16 queries, `tile` of the strip; stores their dBias and the block's part of their dQ.
  __device__ __forceinline__ void Add(const StripProblem& p,
                                      const typename StripBackward<T, kTiles, kDim>::Shared& shared,
                                      int first_query, int tile, int first_key, float* dq_part) {
    using Backward = StripBackward<T, kTiles, kDim>;
    using Columns = ColumnFragments<T, kDim>;
    const int g = LaneId() / 4, t = LaneId() % 4;
    const RowFragments<T, kDim> q(shared.q, tile * 16), dout(shared.dout, tile * 16);
    float lse[2], delta[2];
    int keys_left[2];
    float* dbias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile * 16 + half * 8 + g, query = first_query + row;
      const bool inside = query < p.queries;
      lse[half] = inside ? shared.lse[row] : kInfinity;
      keys_left[half] = inside ? p.keys - first_key - t * 4 : 0;
      dbias[half] = p.dbias + (StripStatistic<kRows>(p) + query) * p.keys + first_key + t * 4;
    }
    TileDelta<T, kDim>(delta, dout, shared.out, tile * 16);
    const Columns q_columns(shared.q, tile * 16);
    const Columns dout_columns(shared.dout, tile * 16);
    float dq[kOut][4] = {};
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float s[2][4] = {}, ds[2][4] = {};
      {
        const TransposedFragments<T, kDim> k(shared.k, m * 16), v(shared.v, m * 16);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          MultiplyStripVectors(s[j], q, k, j);
          MultiplyStripVectors(ds[j], dout, v, j);
        }
      }
      const float4 term = *reinterpret_cast<const float4*>(shared.terms + m * 16 + t * 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * 16 + half * 8 + g;
        const float4 bias =
            ReadStripBias<T>(p, shared.bias, row * Backward::kBiasPitch + m * 16 + t * 4);
        StripGradient(s, ds, half, bias, term, p.scale, lse[half], delta[half]);
        if (p.dbias != nullptr) {
          StoreStripBiasGradient(dbias[half] + m * 16, p.dbias_vectors, keys_left[half] - m * 16,
                                 ds, half);
        }
      }
      const auto a = Mma<T>::FromAccumulators(ds[0], ds[1]);
      Columns(shared.k, m * 16).MultiplyInto(dq, a);
      q_columns.MultiplyInto(dk[m], Transposed<T>(a));
      dout_columns.MultiplyInto(dv[m], Transposed<T>(Mma<T>::FromAccumulators(s[0], s[1])));
    }
    if (p.dq.data == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + tile * 16 + half * 8 + g;
      if (query >= p.queries) continue;
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        *reinterpret_cast<float2*>(dq_part + query * kDim + n * 8 + t * 2) =
            make_float2(dq[n][half * 2], dq[n][half * 2 + 1]);
      }
    }
  }

  // A warp's part of dK and dV, rows in the order of the scores' columns.
  __device__ __forceinline__ void Put(float* sums) const {
    constexpr int kPitch = kSumPitch<kDim>;
    float* const to = sums + LaneId() / 4 * kPitch + LaneId() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      const int m = i / 2, half = i % 2;
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        *reinterpret_cast<float2*>(to + i * 8 * kPitch + n * 8) =
            make_float2(dk[m][n][half * 2], dk[m][n][half * 2 + 1]);
        *reinterpret_cast<float2*>(to + (kTiles * 16 + i * 8) * kPitch + n * 8) =
            make_float2(dv[m][n][half * 2], dv[m][n][half * 2 + 1]);
      }
    }
  }
};

// Sums the warps' parts of dK and dV in their order and stores them.
template <typename T, int kTiles, int kDim, bool kRows>
__device__ __forceinline__ void StoreKeyGradients(const StripProblem& p, const float* sums,
                                                  int warps, int first_key) {
  using Backward = StripBackward<T, kTiles, kDim>;
  constexpr int kQuads = kDim / 4;
#pragma unroll 1
  for (int quad = static_cast<int>(threadIdx.x); quad < 2 * Backward::kKeys * kQuads;
       quad += static_cast<int>(blockDim.x)) {
    const int row = quad / kQuads, column = quad % kQuads * 4;
    const bool is_k = row < Backward::kKeys;
    const int key = first_key + StripOrder(is_k ? row : row - Backward::kKeys);
    const StripOperand& to = is_k ? p.dk : p.dv;
    if (key >= p.keys || column >= p.dim || to.data == nullptr) continue;
    const float* const from = sums + row * kSumPitch<kDim> + column;
    float4 part[kStripWarps];
#pragma unroll
    for (int warp = 0; warp < kStripWarps; ++warp) {
      part[warp] = *reinterpret_cast<const float4*>(from + min(warp, warps - 1) * Backward::kSums);
    }
    float4 sum = part[0];
#pragma unroll
    for (int warp = 1; warp < kStripWarps; ++warp) {
      if (warp >= warps) break;
      sum.x += part[warp].x;
      sum.y += part[warp].y;
      sum.z += part[warp].z;
      sum.w += part[warp].w;
    }
    StoreQuad<T, kRows>(to, is_k ? p.row.dk : p.row.dv, key, column, sum, is_k ? p.scale : 1.0F);
  }
}

template <typename T, int kTiles, int kDim, bool kRows>
__global__ __launch_bounds__(kStripWarps *
                             32) void StripBackwardKernel(const __grid_constant__ StripProblem p,
                                                          float* __restrict__ dq_parts) {
  using Backward = StripBackward<T, kTiles, kDim>;
  extern __shared__ __align__(128) char memory[];
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int first_key = static_cast<int>(blockIdx.x) * Backward::kKeys;
  const typename Backward::Shared shared(memory, warp);
  float* const dq_part = dq_parts + (StripStatistic<kRows>(p) * gridDim.x +
                                     static_cast<std::int64_t>(blockIdx.x) * p.queries) *
                                        kDim;

  const int thread = static_cast<int>(threadIdx.x), lane = LaneId();
  const StripMask<kRows> mask(p, first_key + thread);
  CopyStripKeys<T, kTiles, kDim, kRows>(p, shared, warp, warps, first_key);
  StripGradients<T, kTiles, kDim, kRows> gradients;
  int first_query = warp * kStrip;
  bool begins = true;
  const QueryCopies<T, kTiles, kDim, kRows> copies(p, first_key);
#pragma unroll 1
  do {
    // Two groups of copies, so that the first 16 queries do not wait for the others.
    const int query = min(first_query + lane, p.queries - 1);
    CopyAsync4(SharedAddress(shared.lse + lane), p.lse + StripStatistic<kRows>(p) + query, 4);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      copies.Run(p, shared, first_query, tile * 16, first_key);
      CopyAsyncCommit();
    }
    if (begins && thread < Backward::kKeys) shared.terms[thread] = mask.template Term<T>(p);
#pragma unroll 1
    for (int tile = 0; tile < 2 && first_query + tile * 16 < p.queries; ++tile) {
      if (tile == 0) {
        CopyAsyncWait<1>();
      } else {
        CopyAsyncWait<0>();
      }
      if (begins) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      begins = false;
      gradients.Add(p, shared, first_query, tile, first_key, dq_part);
    }
    CopyAsyncWait<0>();
    __syncwarp();
    first_query += warps * kStrip;
  } while (first_query < p.queries);
  if (begins) __syncthreads();  // a warp without queries
  __syncthreads();              // the strips' vectors have been read
  gradients.Put(shared.Sums(warp));
  __syncthreads();
  StoreKeyGradients<T, kTiles, kDim, kRows>(p, shared.Sums(0), warps, first_key);
}

// dQ = scale times the sum of the blocks' parts, in their order; four elements a thread.
template <typename T, int kDim, bool kRows>
__global__ void StripQueryGradientKernel(const __grid_constant__ StripProblem p, int parts,
                                         const float* __restrict__ dq_parts) {
  constexpr int kQuads = kDim / 4;
  const int quad = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int query = quad / kQuads, column = quad % kQuads * 4;
  if (query >= p.queries || column >= p.dim) return;
  const float* from = dq_parts + StripStatistic<kRows>(p) * parts * kDim + query * kDim + column;
  const std::int64_t stride = static_cast<std::int64_t>(p.queries) * kDim;
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 8
  for (int part = 0; part < parts; ++part, from += stride) {
    const float4 x = __ldcg(reinterpret_cast<const float4*>(from));
    sum.x += x.x;
    sum.y += x.y;
    sum.z += x.z;
    sum.w += x.w;
  }
  StoreQuad<T, kRows>(p.dq, p.row.dq, query, column, sum, p.scale);
}

template <typename T, int kTiles, int kDim>
void LaunchStripBackward(const StripProblem& p, float* dq_parts, int shared_limit,
                         cudaStream_t stream) {
  using Backward = StripBackward<T, kTiles, kDim>;
  // A thread for each key at least.
  const int warps = std::max(2, StripWarps(p.queries, shared_limit, Backward::Bytes));
  const int blocks = (p.keys + Backward::kKeys - 1) / Backward::kKeys;
  Launch("evo_attention backward (cuda sm80 spread)",
         p.layers > 1 ? StripBackwardKernel<T, kTiles, kDim, true>
                      : StripBackwardKernel<T, kTiles, kDim, false>,
         {.blocks = blocks,
          .threads = warps * 32,
          .shared_bytes = static_cast<std::size_t>(Backward::Bytes(warps)),
          .columns = p.heads,
          .layers = p.layers},
         stream, p, dq_parts);
  if (p.dq.data == nullptr) return;
  constexpr int kThreads = 128;
  Launch("evo_attention dQ (cuda sm80 spread)",
         p.layers > 1 ? StripQueryGradientKernel<T, kDim, true>
                      : StripQueryGradientKernel<T, kDim, false>,
         {.blocks = (static_cast<std::int64_t>(p.queries) * (kDim / 4) + kThreads - 1) / kThreads,
          .threads = kThreads,
          .columns = p.heads,
          .layers = p.layers},
         stream, p, blocks, static_cast<const float*>(dq_parts));
}

}  // namespace megafold::cuda
