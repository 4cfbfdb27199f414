// Where the backward in strips has things in shared memory, and how they get there.
#pragma once

#include <algorithm>
#include <cstdint>

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

}  // namespace megafold::cuda
