// What forward and backward of EvoAttention with short keys share: the walk over rows, the copies
// of a row's operands, terms of the scores, stores.
//
// Accumulators of scores begin with the row's terms in units of <q, k>: (bias + mask) / scale.
#pragma once

#include "backends/cuda/attention/fragment.cuh"
#include "backends/cuda/attention/problem.cuh"
#include "backends/cuda/device/tile.cuh"
#include "backends/cuda/short_keys/evo_attention_params.h"

namespace megafold::cuda {

// A term over the scale. Models write -1e9 or the lowest float for -inf; beside such a number
// float32 keeps nothing of <q, k>.
__device__ __forceinline__ float ScaledTerm(float term, float inverse_scale) {
  constexpr float kMasked = -90000.0F;
  constexpr float kLimit = 1e38F;
  return term < kMasked ? -kInfinity : fminf(term * inverse_scale, kLimit);
}

// 1 / sum, and 0 where no key was seen.
__device__ __forceinline__ float InverseOf(float sum) {
  return sum > 0.0F ? __fdividef(1.0F, sum) : 0.0F;
}

// Whether exponentials with this sum are exact enough as numbers of type T.
template <typename T>
__device__ __forceinline__ bool IsInRange(float sum) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  return sum >= (kHalf ? 0x1p-6F : 0x1p-60F) && sum <= (kHalf ? 0x1p10F : 0x1p60F);
}

__device__ __forceinline__ float SumOfQuad(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}
__device__ __forceinline__ float MaximumOfQuad(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
}

// A tile of queries of a row: what a block does in one step.
struct StepPlace {
  int tile;
  int parity;      // of the row: which of the two stages of K and V is its
  int row, batch;  // row of the batch

  __device__ __forceinline__ int Group(const ShortKeysParams& p) const {
    return p.groups == 1 ? 0 : batch;
  }
};

// Where a block is, in shared memory: the places of the step that is being copied and of the step
// that is being worked on, and where the operands of their rows begin. A lane of the first warp
// looks after each address; in registers all this would cost every thread a dozen of them.
class RowTable {
 public:
  enum Lane { kK, kV, kQ, kDout, kMask, kLse, kOut = 16, kOutLse, kDq, kDk, kDv };

  // By all threads, with a barrier before the first use.
  __device__ __forceinline__ void Begin(const ShortKeysParams& p, int row, int head,
                                        int element_bytes) {
    if (threadIdx.x >= 32) return;
    const auto batch_rows = static_cast<int>(p.batch_rows);
    const StepPlace place = {0, 0, row % batch_rows, row / batch_rows};
    const Start start = Find(p, place, head, element_bytes);
    addresses_[0][LaneId()] = start.address;
    steps_[LaneId()] = start.step;
    if (LaneId() % 16 == 0) places_[0][LaneId() / 16] = place;
  }

  __device__ __forceinline__ StepPlace Copied(int step) const { return places_[step & 1][0]; }
  __device__ __forceinline__ StepPlace Worked(int step) const { return places_[step & 1][1]; }
  // An operand of the step's row, copied from or written to.
  template <typename T>
  __device__ __forceinline__ T* Get(int step, Lane lane) const {
    return reinterpret_cast<T*>(addresses_[step & 1][lane]);
  }

  // Prepares copying `copied` + 1 and, unless it is negative, working on `worked` + 1, while these
  // steps may still be asked for. A barrier comes before the next call and before the new steps are
  // used.
  __device__ __forceinline__ void Advance(const ShortKeysParams& p, int copied, int worked,
                                          int tiles, int head, int element_bytes) {
    if (threadIdx.x >= 32) return;
    const int lane = LaneId();
    const int side = lane / 16;
    if (side == 1 && worked < 0) return;
    const int from = (side == 0 ? copied : worked) & 1;
    StepPlace place = places_[from][side];
    unsigned long long address = addresses_[from][lane];
    if (++place.tile == tiles) {
      place.tile = 0;
      place.parity ^= 1;
      if (++place.row < p.batch_rows) {
        address += steps_[lane];
      } else {
        place.row = 0;
        ++place.batch;
        address = Find(p, place, head, element_bytes).address;
      }
    }
    addresses_[from ^ 1][lane] = address;
    if (lane % 16 == 0) places_[from ^ 1][side] = place;
  }

 private:
  struct Start {
    unsigned long long address;
    std::int64_t step;  // to the next row
  };

  static __device__ __forceinline__ Start Find(const ShortKeysParams& p, const StepPlace& place,
                                               int head, int element_bytes) {
    const auto at = [&](const void* data, std::int64_t batch, std::int64_t row, std::int64_t start,
                        int bytes) {
      return Start{reinterpret_cast<unsigned long long>(data) +
                       (place.batch * batch + place.row * row + start) * bytes,
                   row * bytes};
    };
    const auto operand = [&](const AttentionOperand& x) {
      return at(x.data, x.batch, x.row, head * x.head, element_bytes);
    };
    switch (LaneId()) {
      case kK:
        return operand(p.k);
      case kV:
        return operand(p.v);
      case kQ:
        return operand(p.q);
      case kDout:
        return operand(p.dout);
      case kMask:
        return at(p.mask.data, p.mask.batch, p.mask.row, 0,
                  p.mask.kind == TermKind::kBool      ? 1
                  : p.mask.kind == TermKind::kFloat32 ? 4
                                                      : element_bytes);
      case kOut:
        return operand(p.out);
      case kDq:
        return operand(p.dq);
      case kDk:
        return operand(p.dk);
      case kDv:
        return operand(p.dv);
      default: {
        const std::int64_t row = static_cast<std::int64_t>(p.heads) * p.queries;
        return at(p.lse, row * p.batch_rows, row, static_cast<std::int64_t>(head) * p.queries, 4);
      }
    }
  }

  unsigned long long addresses_[2][32];
  std::int64_t steps_[32];
  StepPlace places_[2][2];
};

// A copy of 16 bytes, or 16 zeros. L2 fetches the neighbours too: the next head's vectors, which
// another block of the team asks for at about the same time.
__device__ __forceinline__ void CopyVector(std::uint32_t to, const void* from, bool inside) {
  asm volatile(
      "{\n"
      ".reg .pred outside;\n"
      "setp.eq.u32 outside, %2, 0;\n"
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, outside;\n"
      "}\n" ::"r"(to),
      "l"(from), "r"(static_cast<std::uint32_t>(inside))
      : "memory");
}

// The thread's number, asked for anew: what is worked out from it need not be kept from step to
// step.
__device__ __forceinline__ int FreshThread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Copies kRows vectors from a row, `count` of which are inside, to a tile.
template <typename T, int kRows, int kDim, int kThreads>
__device__ __forceinline__ void CopyTile(void* tile, const T* source, std::int64_t token, int count,
                                         int dim) {
  constexpr int kVectors = kDim / 8;
  constexpr int kRowsPerPass = kThreads / kVectors;
  constexpr int kPitch = kTilePitch<T, kDim>;
  const int thread = FreshThread();
  const int first = thread / kVectors;
  const int column = thread % kVectors * 8;
  if (kThreads % kVectors != 0 && first >= kRowsPerPass) return;
  const char* from = reinterpret_cast<const char*>(source + first * token + column);
  const std::uint32_t to = SharedAddress(tile) + (first * kPitch + column) * 2;
  const bool inside = column < dim;
#pragma unroll
  for (int pass = 0; pass * kRowsPerPass < kRows; ++pass) {
    const int row = first + pass * kRowsPerPass;
    if ((pass + 1) * kRowsPerPass > kRows && row >= kRows) break;
    CopyVector(to + pass * kRowsPerPass * kPitch * 2, from, inside && row < count);
    from += token * (kRowsPerPass * 2);
  }
}

// The bits of the mask's term of `key`; `row` is where the row's mask begins.
template <typename T>
__device__ __forceinline__ std::uint32_t MaskBitsOf(const AttentionProblem& p, const void* row,
                                                    int key) {
  const std::int64_t offset = key * p.mask.key;
  if (key >= p.keys) return 0;
  if (p.mask.kind == TermKind::kBool) return static_cast<const std::uint8_t*>(row)[offset];
  if (p.mask.kind == TermKind::kFloat32) return static_cast<const std::uint32_t*>(row)[offset];
  if (p.mask.kind == TermKind::kStorage) return static_cast<const std::uint16_t*>(row)[offset];
  return 0;
}

// What starts a score's accumulator: the mask's term over the scale, -inf past the last key.
template <typename T>
__device__ __forceinline__ float MaskStart(const AttentionProblem& p, std::uint32_t bits, int key,
                                           float inverse_scale) {
  if (key >= p.keys) return -kInfinity;
  return ScaledTerm(MaskValue<T>(p.mask.kind, bits), inverse_scale);
}

// The bias over the scale for a lane's elements of a fragment, 0 outside the tensor; place(m, n, i)
// gives an element's query and key. Every load is made, wherever it has to point, so that none
// waits for another.
template <typename T, int kMTiles, int kNTiles, typename Place>
__device__ __forceinline__ void ReadShortBias(float (&bias)[kMTiles][kNTiles][4],
                                              const ShortKeysParams& p, int group, int head,
                                              float inverse_scale, const Place& place) {
  const auto visit = [&](const auto& run) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) run(bias[m][n][i], place(m, n, i));
      }
    }
  };
  const std::int64_t base = group * p.bias.group + head * p.bias.head;
  const auto load = [&]<typename Element>(const Element* data) {
    visit([&](float& value, int2 at) {
      value = static_cast<float>(data[base + min(at.x, p.queries - 1) * p.bias.query +
                                      min(at.y, p.keys - 1) * p.bias.key]);
    });
  };
  if (p.bias.kind == TermKind::kNone) return visit([](float& value, int2) { value = 0.0F; });
  if (p.bias.kind == TermKind::kFloat32) {
    load(static_cast<const float*>(p.bias.data));
  } else {
    load(static_cast<const T*>(p.bias.data));
  }
  visit([&](float& value, int2 at) {
    value = at.x < p.queries && at.y < p.keys ? ScaledTerm(value, inverse_scale) : 0.0F;
  });
}

// Writes fragments of 16 rows and kNTiles * 8 columns, as 16-bit numbers, to shared memory.
template <typename T, int kNTiles, int kPitch>
__device__ __forceinline__ void StoreFragments(T* shared, const float (&c)[kNTiles][4], float top,
                                               float bottom) {
  const int lane = LaneId();
#if __CUDA_ARCH__ >= 900
#pragma unroll
  for (int n = 0; n < kNTiles; n += 2) {
    StoreMatrix(SharedAddress(shared + lane % 16 * kPitch + lane / 16 * 8 + n * 8),
                Pack(c[n][0] * top, c[n][1] * top, T{}),
                Pack(c[n][2] * bottom, c[n][3] * bottom, T{}),
                Pack(c[n + 1][0] * top, c[n + 1][1] * top, T{}),
                Pack(c[n + 1][2] * bottom, c[n + 1][3] * bottom, T{}));
  }
#else
  auto* const pairs = reinterpret_cast<std::uint32_t*>(shared + lane / 4 * kPitch + lane % 4 * 2);
#pragma unroll
  for (int n = 0; n < kNTiles; ++n) {
    pairs[n * 4] = Pack(c[n][0] * top, c[n][1] * top, T{});
    pairs[8 * kPitch / 2 + n * 4] = Pack(c[n][2] * bottom, c[n][3] * bottom, T{});
  }
#endif
}

// Stores a warp's 16 rows of accumulators, times a factor for rows 0 to 7 and 8 to 15, in whole
// vectors, by way of 16 rows of shared memory that no other warp reads.
template <typename T, int kDim>
__device__ __forceinline__ void StoreThroughShared(T* shared, T* to, std::int64_t stride, int rows,
                                                   int columns, const float (&c)[kDim / 8][4],
                                                   float top, float bottom) {
  constexpr int kPitch = kTilePitch<T, kDim>;
  constexpr int kVectors = kDim / 8;
  const int lane = FreshThread() % 32;
  __syncwarp();
  StoreFragments<T, kVectors, kPitch>(shared, c, top, bottom);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kVectors / 2; ++i) {
    const int row = (lane + i * 32) / kVectors;
    const int column = (lane + i * 32) % kVectors * 8;
    if (row >= rows || column >= columns) continue;
    *reinterpret_cast<uint4*>(to + row * stride + column) =
        *reinterpret_cast<const uint4*>(shared + row * kPitch + column);
  }
}

}  // namespace megafold::cuda
