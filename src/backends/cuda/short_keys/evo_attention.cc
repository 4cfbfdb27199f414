#include "backends/cuda/short_keys/evo_attention.h"

#include <algorithm>
#include <string>

#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/short_keys/evo_attention_params.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

// ---- The kernels that were built: one entry a storage type and padded head dimension. ----

struct Instance {
  DType type;
  int dim;
  void (*forward)(const ShortKeysParams&, cudaStream_t);
  void (*backward)(const ShortKeysParams&, cudaStream_t);
  int (*forward_bytes)();
  int (*backward_bytes)(bool, int);
};

template <DType kType, int kDim>
constexpr Instance MakeInstance() {
  using Kernels = ShortKeysAttention<kType, kDim>;
  return {kType,
          kDim,
          Kernels::Forward,
          Kernels::Backward,
          Kernels::ForwardSharedBytes,
          Kernels::BackwardSharedBytes};
}

// The generated list is sorted by head dimension.
constexpr Instance kInstances[] = {
#define MEGAFOLD_SHORT_KEYS_ATTENTION(type, dim) MakeInstance<DType::type, dim>(),
#include "cuda_short_keys_attention_instances.inc"
#undef MEGAFOLD_SHORT_KEYS_ATTENTION
};

const Instance* FindInstance(const TensorView& q) {
  for (const Instance& instance : kInstances) {
    if (instance.type == q.dtype && instance.dim >= q.size(4)) return &instance;
  }
  return nullptr;
}

// ---- What the path takes. ----

int AheadFor(std::int64_t queries) { return queries > 2 * kShortQueryTile ? 3 : 1; }

Support FitsDevice(int bytes, int device) {
  int limit = 0;
  CheckCuda(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
            "cudaDeviceGetAttribute");
  if (bytes <= limit) return Support::Yes();
  return Support::No(
      StrCat("a block needs ", bytes, " bytes of shared memory, the device has ", limit));
}

// Longer vectors leave room for two blocks on a multiprocessor instead of three. Without a bias,
// which stays on chip, the Hopper kernels are faster then, so these problems have an entry of their
// own after those.
constexpr std::int64_t kShortVector = 32;

template <bool kWide>
Support SupportsOperands(const TensorView& q, const TensorView& k, const TensorView& v,
                         const TensorView& bias, float scale) {
  if ((!bias.defined() && q.size(4) > kShortVector) != kWide) {
    return Support::No(StrCat(kWide ? "a bias, or" : "no bias and not", " at most ", kShortVector,
                              " elements a vector"));
  }
  const Support sizes = SupportsAttention(q, k, bias);
  if (!sizes) return sizes;
  if (FindInstance(q) == nullptr) {
    return Support::No(StrCat("no kernel for ", Name(q.dtype), " with head dimension ", q.size(4)));
  }
  if (k.size(2) > kShortKeys) return Support::No(StrCat("more than ", kShortKeys, " keys"));
  const std::int64_t tiles = (q.size(2) + kShortQueryTile - 1) / kShortQueryTile;
  if (q.size(0) * q.size(1) > 0x7FFFFFFF / std::max<std::int64_t>(1, tiles)) {
    return Support::No("more than 2^31 tiles of queries");
  }
  for (int dim = 0; dim < 4; ++dim) {
    if (q.size(dim) == 0 || k.size(dim) == 0) return Support::No("the problem is empty");
  }
  if (bias.defined() && q.size(2) > kShortQueryTile) {
    return Support::No(StrCat("a bias of more than ", kShortQueryTile, " queries"));
  }
  // Accumulators of scores begin with terms / scale, and -inf must stay -inf.
  constexpr float kMinScale = 1e-6F;
  if (!(scale >= kMinScale)) return Support::No("the scale is next to 0 or negative");
  for (const TensorView* view : {&q, &k, &v}) {
    if (!IsAligned(*view)) return Support::No("the vectors of an operand do not start on 16 bytes");
  }
  return Support::Yes();
}

template <bool kWide>
Support SupportsForward(const ops::EvoAttentionForwardArgs& args) {
  const Support operands = SupportsOperands<kWide>(args.q, args.k, args.v, args.bias, args.scale);
  if (!operands) return operands;
  if (args.bias.defined() && MakeAttentionProblem(args).rows == 1) {
    return Support::No("one row to a bias");  // nothing stays on chip for the next
  }
  if (!IsAligned(args.out)) return Support::No("the vectors of O do not start on 16 bytes");
  return FitsDevice(FindInstance(args.q)->forward_bytes(), args.q.device.index);
}

template <bool kWide>
Support SupportsBackward(const ops::EvoAttentionBackwardArgs& args) {
  const Support operands = SupportsOperands<kWide>(args.q, args.k, args.v, args.bias, args.scale);
  if (!operands) return operands;
  for (const TensorView* view : {&args.out, &args.dout, &args.dq, &args.dk, &args.dv}) {
    if (view->defined() && !IsAligned(*view)) {
      return Support::No("the vectors of O or of a gradient do not start on 16 bytes");
    }
  }
  return FitsDevice(
      FindInstance(args.q)->backward_bytes(args.bias.defined(), AheadFor(args.q.size(2))),
      args.q.device.index);
}

// ---- The implementation's functions. ----

// What 132 multiprocessors hold at a time.
std::int64_t Blocks(int dim) { return dim <= kShortVector ? 396 : 264; }

void Forward(const ops::EvoAttentionForwardArgs& args, Workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  ShortKeysParams p{MakeAttentionProblem(args)};
  p.ranges = DealRows(p.batches * p.batch_rows, 1, p.heads, Blocks(p.dim));
  FindInstance(args.q)->forward(p, static_cast<cudaStream_t>(stream.handle));
}

ShortKeysParams MakeBackwardParams(const ops::EvoAttentionBackwardArgs& args) {
  ShortKeysParams p{MakeAttentionProblem(args)};
  p.ahead = AheadFor(p.queries);
  const std::int64_t rows = p.batches * p.batch_rows;
  if (!args.dbias.defined()) {
    p.ranges = DealRows(rows, 1, p.heads, Blocks(p.dim));
    return p;
  }
  p.dbias = args.dbias.ptr<float>();
  const std::int64_t part = std::int64_t{4} * p.heads * p.queries * p.keys;
  const std::int64_t q_bytes = rows * p.heads * p.queries * p.dim * 2;
  p.ranges = DealRowsOfBias(rows, p.rows, p.heads, Blocks(p.dim), part, q_bytes / 2);
  return p;
}

bool HasParts(const ShortKeysParams& p) { return p.dbias != nullptr && p.ranges.grain != p.rows; }

std::size_t BackwardWorkspace(const ops::EvoAttentionBackwardArgs& args) {
  const ShortKeysParams p = MakeBackwardParams(args);
  if (!HasParts(p)) return 0;
  return static_cast<std::size_t>(2 * p.ranges.teams * p.heads) *
         static_cast<std::size_t>(p.queries) * static_cast<std::size_t>(p.keys) * 4;
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  ShortKeysParams p = MakeBackwardParams(args);
  if (HasParts(p)) p.dbias_parts = static_cast<float*>(workspace.data);
  FindInstance(args.q)->backward(p, queue);
  if (HasParts(p)) SumBiasParts(p, queue);
}

}  // namespace

const EvoAttentionImplementation kShortKeysEvoAttention = {
    "cuda sm80 short",
    DeviceType::kCuda,
    {SupportsForward<false>, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward<false>, BackwardWorkspace, Backward}};

const EvoAttentionImplementation kWideShortKeysEvoAttention = {
    "cuda sm80 short wide",
    DeviceType::kCuda,
    {SupportsForward<true>, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward<true>, BackwardWorkspace, Backward}};

}  // namespace megafold::cuda
