// Where the tiles of EvoAttention's backward lie in shared memory, and how they get there.
#pragma once

#include <cstdint>

#include "backends/cuda/spread/evo_attention_common.cuh"
#include "backends/cuda/tiles/evo_attention_params.h"

namespace megafold::cuda {

inline constexpr int kScoreWarps = 8;  // of a block
inline constexpr int kScoreThreads = kScoreWarps * 32;

// Where things lie in shared memory, in bytes. A stage ends with the bias, whose size depends on
// its type.
template <typename T, int kDim>
struct TileLayout {
  static constexpr int kPitch = kTilePitch<T, kDim>;
  static constexpr int kScorePitch = kTilePitch<T, kScoreTile>;
  static constexpr int kBiasPitch = kScoreTile + 16;  // quads of two rows lie in different banks
  static constexpr int kVectors = kScoreTile * kPitch * static_cast<int>(sizeof(T));
  static constexpr int kScores = kScoreTile * kScorePitch * static_cast<int>(sizeof(T));
  static constexpr int kStatistics = kScoreTile * static_cast<int>(sizeof(float));

  static constexpr int kK = 0, kV = kVectors;
  static constexpr int kP = 2 * kVectors, kDs = kP + kScores;
  static constexpr int kTerms = kDs + kScores;        // what the mask adds
  static constexpr int kSums = kTerms + kStatistics;  // of p and p dp, for two halves of the keys
  static constexpr int kStages = kSums + 4 * kStatistics;
  // Of a stage.
  static constexpr int kQ = 0, kDout = kVectors, kOut = 2 * kVectors;
  static constexpr int kLse = 3 * kVectors, kBias = kLse + kStatistics;

  __host__ __device__ static int StageBytes(const AttentionProblem& p) {
    return kBias + kScoreTile * kBiasPitch * BiasElementBytes(p.bias);
  }
  static int Bytes(const TileParams& p) { return kStages + p.stages * StageBytes(p); }
};

// Where delta comes from: with one tile of keys p and dp, else dO and O.
__device__ __forceinline__ bool IsDeltaFromOut(const TileParams& p) { return p.keys > kScoreTile; }

// Where a block works.
struct TilePlace {
  SpreadRow row;
  int head, first_key, first_query, last_query;
};

// What passes by a block: Q, dO, O, log-sum-exp and bias of 64 queries at a time. What a thread
// copies is worked out once.
template <typename T, int kDim>
class TileQueries {
  using Layout = TileLayout<T, kDim>;
  using Vectors = VectorLoads<sizeof(T), kScoreTile, kDim, Layout::kPitch, kScoreThreads>;

 public:
  __device__ __forceinline__ TileQueries(const TileParams& p, const TilePlace& place)
      : q_(Position(p.q, place)),
        dout_(Position(p.dout, place)),
        out_(Position(p.out, place)),
        bias_(static_cast<const char*>(p.bias.data)),
        lse_(p.lse + StatisticBase(p, place.row.At(), place.head)) {
    const int bytes = BiasElementBytes(p.bias);
    bias_ += BiasOffset(p.bias, place.row.group, place.head,
                        place.first_query + Thread() / Lanes(bytes), place.first_key) *
                 bytes +
             Thread() % Lanes(bytes) * 16;
  }

  // Copies the queries from `query` on, which are those after the ones before.
  __device__ __forceinline__ void Next(char* stage, const TileParams& p, const TilePlace& place,
                                       int query) {
    const int left = p.queries - query;
    Copy(q_, p.q, stage + Layout::kQ, left, p.dim);
    Copy(dout_, p.dout, stage + Layout::kDout, left, p.dim);
    if (IsDeltaFromOut(p)) Copy(out_, p.out, stage + Layout::kOut, left, p.dim);
    if (p.bias.kind != TermKind::kNone) {
      CopyBias(stage + Layout::kBias, p, place, query, left);
      bias_ += kScoreTile * p.bias.query * BiasElementBytes(p.bias);
    }
    if (Thread() < kScoreTile) {
      CopyAsync4(SharedAddress(stage + Layout::kLse) + Thread() * 4,
                 lse_ + min(query + Thread(), p.queries - 1), 4);
    }
  }

 private:
  static __device__ __forceinline__ int Thread() { return static_cast<int>(threadIdx.x); }
  // Of a row of bias, each of 16 bytes.
  static __device__ __forceinline__ int Lanes(int bytes) { return bytes == 4 ? 16 : 8; }

  static __device__ __forceinline__ VectorPosition Position(const AttentionOperand& from,
                                                            const TilePlace& place) {
    const T* const first = RowBase<const T>(from, place.row.At(), place.head);
    return Vectors::Position(first + place.first_query * from.token, from.token, Thread());
  }
  static __device__ __forceinline__ void Copy(VectorPosition& at, const AttentionOperand& from,
                                              char* tile, int left, int dim) {
    Vectors::Run(at, SharedAddress(tile), from.token, left, dim);
    at.source += kScoreTile * static_cast<int>(sizeof(T)) * from.token;
  }

  __device__ __forceinline__ void CopyBias(char* tile, const TileParams& p, const TilePlace& place,
                                           int query, int left) const {
    const int bytes = BiasElementBytes(p.bias), keys = p.keys - place.first_key;
    if (!p.bias.aligned) {
      const auto copy = [&](auto copies) {
        const std::int64_t first =
            BiasOffset(p.bias, place.row.group, place.head, query, place.first_key);
        copies(tile, Layout::kBiasPitch, kScoreTile, kScoreTile,
               static_cast<const char*>(p.bias.data) + first * bytes, p.bias.query, p.bias.key,
               left, keys, Thread(), kScoreThreads);
      };
      if (bytes == 4) return copy([](auto... args) { CopyElements<4>(args...); });
      return copy([](auto... args) { CopyElements<2>(args...); });
    }
    const int lanes = Lanes(bytes), pass = kScoreThreads / lanes, begin = Thread() % lanes * 16;
    const int valid = max(0, min(16, keys * bytes - begin));
    const std::int64_t step = pass * p.bias.query * bytes;
    std::uint32_t to = SharedAddress(tile) + Thread() / lanes * Layout::kBiasPitch * bytes + begin;
    const char* from = bias_;
#pragma unroll 1
    for (int row = Thread() / lanes; row < kScoreTile; row += pass, from += step) {
      CopyAsync16(to, from, row < left ? valid : 0);
      to += pass * Layout::kBiasPitch * bytes;
    }
  }

  VectorPosition q_, dout_, out_;
  const char* bias_;
  const float* lse_;
};

// The block's keys, in the order of StripOrder; what the mask adds to them is stored at once, in
// their own.
template <typename T, int kDim>
__device__ __forceinline__ void CopyTileKeys(char* shared, const TileParams& p,
                                             const TilePlace& place) {
  using Layout = TileLayout<T, kDim>;
  const int thread = static_cast<int>(threadIdx.x), key = place.first_key;
  const RowIndex at = place.row.At();
  const auto copy = [&](int offset, const AttentionOperand& from) {
    CopyVectors<T, kDim, true>(reinterpret_cast<T*>(shared + offset),
                               RowBase<const T>(from, at, place.head) + key * from.token,
                               from.token, kScoreTile, p.keys - key, p.dim);
  };
  copy(Layout::kK, p.k);
  copy(Layout::kV, p.v);
  if (thread < kScoreTile) {
    reinterpret_cast<float*>(shared + Layout::kTerms)[thread] =
        MaskTerm<T>(p, MaskBase(p, at), key + thread);
  }
}

}  // namespace megafold::cuda
