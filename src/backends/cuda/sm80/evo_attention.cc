#include "backends/cuda/sm80/evo_attention.h"

#include <algorithm>
#include <array>
#include <string>

#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention_tiling.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

// ---- The kernels that were built: one entry a storage type and padded head dimension. ----

struct Instance {
  DType type;
  int dim;
  void (*forward)(const AttentionParams&, cudaStream_t);
  void (*keys)(const AttentionParams&, cudaStream_t);
  void (*queries)(const AttentionParams&, cudaStream_t);
  void (*bias)(const AttentionParams&, cudaStream_t);
};

template <DType kType, int kDim>
constexpr Instance MakeInstance() {
  using Kernels = PortableAttention<kType, kDim>;
  return {kType,
          kDim,
          Kernels::Forward,
          Kernels::BackwardKeys,
          Kernels::BackwardQueries,
          Kernels::BackwardBias};
}

// The generated list is sorted by head dimension.
constexpr Instance kInstances[] = {
#define MEGAFOLD_PORTABLE_ATTENTION(type, dim) MakeInstance<DType::type, dim>(),
#include "cuda_evo_attention_instances.inc"
#undef MEGAFOLD_PORTABLE_ATTENTION
};

const Instance* FindInstance(DType type, int dim) {
  for (const Instance& instance : kInstances) {
    if (instance.type == type && instance.dim >= dim) return &instance;
  }
  return nullptr;
}

// ---- Workspace of the backward. ----

std::size_t RoundUp(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

std::size_t DeltaBytes(const AttentionParams& p) {
  return RoundUp(static_cast<std::size_t>(p.batches * p.batch_rows * p.heads * p.queries) * 4);
}

std::size_t BiasPartBytes(const AttentionParams& p) {
  return static_cast<std::size_t>(p.groups * p.heads) * static_cast<std::size_t>(p.queries) *
         static_cast<std::size_t>(p.keys) * 4;
}

// Parts that dBias is summed in: enough blocks to fill a large device, as long as the parts stay
// below half of Q and each has a few rows to walk over. It depends on the shape alone, so results
// do not change with the device.
std::int64_t RowChunks(const AttentionParams& p, std::size_t element_bytes) {
  constexpr std::int64_t kTargetBlocks = 1056;
  constexpr std::int64_t kRowsPerChunk = 8;
  const std::int64_t tiles =
      static_cast<std::int64_t>((p.queries + 63) / 64) * ((p.keys + 63) / 64) * p.heads * p.groups;
  const std::size_t q_bytes = static_cast<std::size_t>(p.batches * p.batch_rows * p.heads) *
                              static_cast<std::size_t>(p.queries) *
                              static_cast<std::size_t>(p.dim) * element_bytes;
  const auto fitting =
      static_cast<std::int64_t>(q_bytes / 2 / std::max<std::size_t>(1, BiasPartBytes(p)));
  const std::int64_t wanted = kTargetBlocks / std::max<std::int64_t>(1, tiles);
  return std::clamp<std::int64_t>(std::min({wanted, fitting, p.rows / kRowsPerChunk}), 1, 64);
}

// ---- The implementation's functions. ----

Support SupportsForward(const ops::EvoAttentionForwardArgs& args) {
  return SupportsAttention(args.q, args.k, args.bias);
}

Support SupportsBackward(const ops::EvoAttentionBackwardArgs& args) {
  return SupportsAttention(args.q, args.k, args.bias);
}

const Instance& RequireInstance(const TensorView& q) {
  const Instance* instance = FindInstance(q.dtype, static_cast<int>(q.size(4)));
  if (instance == nullptr) Fail(ErrorCode::kInternal, "evo_attention (cuda sm80): no kernel");
  return *instance;
}

template <AttentionShape kShape>
void Forward(const ops::EvoAttentionForwardArgs& args, Workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  AttentionParams p{MakeAttentionProblem(args)};
  p.shape = kShape;
  RequireInstance(args.q).forward(p, static_cast<cudaStream_t>(stream.handle));
}

std::size_t BackwardWorkspace(const ops::EvoAttentionBackwardArgs& args) {
  const AttentionParams p{MakeAttentionProblem(args)};
  std::size_t bytes = DeltaBytes(p);
  const std::int64_t chunks = RowChunks(p, SizeOf(args.q.dtype));
  if (args.dbias.defined() && chunks > 1)
    bytes += static_cast<std::size_t>(chunks) * BiasPartBytes(p);
  return bytes;
}

template <AttentionShape kShape>
void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  const Instance& instance = RequireInstance(args.q);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  AttentionParams p{MakeAttentionProblem(args)};
  p.shape = kShape;
  p.delta = static_cast<float*>(workspace.data);
  AttentionDelta(p, args.q.dtype, queue);
  if (args.dk.defined() || args.dv.defined()) instance.keys(p, queue);
  if (args.dq.defined()) instance.queries(p, queue);
  if (!args.dbias.defined()) return;
  p.row_chunks = RowChunks(p, SizeOf(args.q.dtype));
  auto* const dbias = args.dbias.ptr<float>();
  if (p.row_chunks == 1) {
    p.dbias = dbias;
    instance.bias(p, queue);
    return;
  }
  p.dbias = reinterpret_cast<float*>(static_cast<char*>(workspace.data) + DeltaBytes(p));
  instance.bias(p, queue);
  SumParts(p.dbias, dbias, p.row_chunks, static_cast<std::int64_t>(BiasPartBytes(p) / 4), queue);
}

}  // namespace

Support SupportsAttention(const TensorView& q, const TensorView& k, const TensorView& bias) {
  if (q.size(4) % 8 != 0)
    return Support::No(StrCat("head dimension ", q.size(4), " is not a multiple of 8"));
  if (q.size(4) > 1 << 20 || FindInstance(q.dtype, static_cast<int>(q.size(4))) == nullptr) {
    return Support::No(StrCat("no kernel for ", Name(q.dtype), " with head dimension ", q.size(4)));
  }
  constexpr std::int64_t kMaxLength = std::int64_t{1} << 30;
  if (q.size(2) > kMaxLength || k.size(2) > kMaxLength || q.size(3) > kMaxLength) {
    return Support::No(StrCat("more than ", kMaxLength, " queries, keys or heads"));
  }
  if (bias.defined() && bias.size(1) != 1) return Support::No("bias has a row dimension");
  return Support::Yes();
}

namespace {

// A tiling that a tuned choice may name. Wide elements and vectors are built in one alone.
template <typename Args>
Support SupportsVariant(const Args& args) {
  const Support support = SupportsAttention(args.q, args.k, args.bias);
  if (!support) return support;
  const int dim = RequireInstance(args.q).dim;
  if (!IsWide(static_cast<int>(SizeOf(args.q.dtype)), dim)) return Support::Yes();
  return Support::No("there is one tiling for these types and dimensions");
}

template <AttentionShape kShape>
constexpr EvoAttentionImplementation Variant(const char* name) {
  return {name,
          DeviceType::kCuda,
          {SupportsVariant<ops::EvoAttentionForwardArgs>, NoWorkspace<ops::EvoAttentionForwardArgs>,
           Forward<kShape>},
          {SupportsVariant<ops::EvoAttentionBackwardArgs>, BackwardWorkspace, Backward<kShape>},
          /*variant=*/true};
}

}  // namespace

std::span<const EvoAttentionImplementation> PortableEvoAttention() {
  static const EvoAttentionImplementation implementations[] = {
      {"cuda sm80",
       DeviceType::kCuda,
       {SupportsForward, NoWorkspace<ops::EvoAttentionForwardArgs>,
        Forward<AttentionShape::kByHeuristic>},
       {SupportsBackward, BackwardWorkspace, Backward<AttentionShape::kByHeuristic>}},
      Variant<AttentionShape::kShared>("cuda sm80 shared"),
      Variant<AttentionShape::kSingle>("cuda sm80 single"),
      Variant<AttentionShape::kWindow>("cuda sm80 window")};
  return implementations;
}

}  // namespace megafold::cuda
