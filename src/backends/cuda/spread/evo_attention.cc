#include "backends/cuda/spread/evo_attention.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/spread/evo_attention_params.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

// ---- The kernels that were built: one entry a storage type and padded head dimension. ----

struct Instance {
  DType type;
  int dim;
  void (*forward)(const SpreadParams&, cudaStream_t);
  int (*forward_bytes)(const SpreadParams&);
  void (*backward)(const SpreadParams&, cudaStream_t);
  int (*backward_bytes)(const SpreadParams&);
};

template <DType kType, int kDim>
constexpr Instance MakeInstance() {
  using Kernels = SpreadAttention<kType, kDim>;
  return {kType,
          kDim,
          Kernels::Forward,
          Kernels::ForwardBytes,
          Kernels::Backward,
          Kernels::BackwardBytes};
}

// The generated list is sorted by head dimension.
constexpr Instance kInstances[] = {
#define MEGAFOLD_SPREAD_ATTENTION(type, dim) MakeInstance<DType::type, dim>(),
#include "cuda_spread_attention_instances.inc"
#undef MEGAFOLD_SPREAD_ATTENTION
};

const Instance* FindInstance(const TensorView& q) {
  for (const Instance& instance : kInstances) {
    if (instance.type == q.dtype && instance.dim >= q.size(4)) return &instance;
  }
  return nullptr;
}

// ---- How a problem is cut. ----

int DeviceAttribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  CheckCuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

SpreadSide CutSide(int length, int rounds) {
  const int parts = kSpreadParts * rounds;
  const int step = ((length + parts - 1) / parts + 15) / 16 * 16;
  return {step, (length + kSpreadParts * step - 1) / (kSpreadParts * step)};
}

// As few rounds as the shared memory of the device allows.
void CutSides(SpreadParams& p, int (*bytes)(const SpreadParams&), int device) {
  const int limit = DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  int rounds = 0;
  do {
    ++rounds;
    p.key_side = CutSide(p.keys, rounds);
    p.query_side = CutSide(p.queries, rounds);
  } while (bytes(p) > limit && std::max(p.key_side.step, p.query_side.step) > 16);
}

int CountBlocks(int tiles, int length) { return (length + tiles * 16 - 1) / (tiles * 16); }

// Sets the tiles of a block and the numbers of blocks: as small a block as does not add to the
// number of times that all multiprocessors are filled. Results do not depend on it: a tile is
// summed over its parts alike in every block. Gives that number.
std::int64_t SetBlocks(SpreadParams& p, bool keeps_keys, bool keeps_queries, int device) {
  const std::int64_t multiprocessors = DeviceAttribute(cudaDevAttrMultiProcessorCount, device);
  const std::int64_t key_rows = p.groups * p.rows * p.heads;
  const std::int64_t query_rows = p.dbias != nullptr ? p.groups * p.heads : key_rows;
  std::int64_t fewest = INT64_MAX;
  for (int tiles = 1; tiles <= kSpreadMaxTiles; ++tiles) {
    const int keys = keeps_keys ? CountBlocks(tiles, p.keys) : 0;
    const int queries = keeps_queries ? CountBlocks(tiles, p.queries) : 0;
    const std::int64_t fills =
        (keys * key_rows + queries * query_rows + multiprocessors - 1) / multiprocessors;
    if (fills >= fewest) continue;
    fewest = fills;
    p.tiles = tiles;
    p.key_blocks = keys;
    p.query_blocks = queries;
  }
  return fewest;
}

// ---- What the path takes: what it can do and, as measured, does faster than the others. ----

constexpr std::int64_t kMaxGridPlaces = 65'535;  // of a grid's second and third dimension
constexpr std::int64_t kMinBackwardKeys = 65;
constexpr std::int64_t kMaxBiasRows = 2;
constexpr std::int64_t kMaxScores = 40'000'000;
constexpr std::int64_t kMaxScoresWithoutBias = 2'500'000;

Support SupportsOperands(const TensorView& q, const TensorView& k, const TensorView& bias,
                         std::initializer_list<const TensorView*> vectors) {
  const Support sizes = SupportsAttention(q, k, bias);
  if (!sizes) return sizes;
  if (FindInstance(q) == nullptr) {
    return Support::No(StrCat("no kernel for ", Name(q.dtype), " with head dimension ", q.size(4)));
  }
  for (int dim = 0; dim < 4; ++dim) {
    if (q.size(dim) == 0 || k.size(dim) == 0) return Support::No("the problem is empty");
  }
  for (const TensorView* view : vectors) {
    if (view->defined() && !IsAligned(*view)) {
      return Support::No("the vectors of an operand do not start on 16 bytes");
    }
  }
  return Support::Yes();
}

Support SupportsSize(const AttentionProblem& p) {
  if (p.heads > kMaxGridPlaces || p.groups * p.rows > kMaxGridPlaces) {
    return Support::No(StrCat("more than ", kMaxGridPlaces, " heads or rows"));
  }
  const bool has_bias = p.bias.kind != TermKind::kNone;
  if (has_bias && p.rows > kMaxBiasRows) {
    return Support::No(StrCat("a bias that serves more than ", kMaxBiasRows, " rows"));
  }
  const double scores = static_cast<double>(p.groups * p.rows) * p.heads * p.queries * p.keys;
  const std::int64_t limit = has_bias ? kMaxScores : kMaxScoresWithoutBias;
  if (scores > static_cast<double>(limit)) {
    return Support::No(StrCat("more than ", limit, " scores", has_bias ? "" : " without a bias"));
  }
  return Support::Yes();
}

Support SupportsForward(const ops::EvoAttentionForwardArgs& args) {
  const Support operands =
      SupportsOperands(args.q, args.k, args.bias, {&args.q, &args.k, &args.v, &args.out});
  if (!operands) return operands;
  SpreadParams p{MakeAttentionProblem(args)};
  const Support size = SupportsSize(p);
  if (!size) return size;
  if (SetBlocks(p, false, true, args.q.device.index) > 1) {
    return Support::No("more queries than one block for each multiprocessor holds");
  }
  return Support::Yes();
}

Support SupportsBackward(const ops::EvoAttentionBackwardArgs& args) {
  const Support operands = SupportsOperands(
      args.q, args.k, args.bias,
      {&args.q, &args.k, &args.v, &args.out, &args.dout, &args.dq, &args.dk, &args.dv});
  if (!operands) return operands;
  if (args.k.size(2) < kMinBackwardKeys) {
    return Support::No(
        StrCat("fewer than ", kMinBackwardKeys, " keys: delta comes from O, which is rounded"));
  }
  return SupportsSize(MakeAttentionProblem(args));
}

// ---- The implementation's functions. ----

void Forward(const ops::EvoAttentionForwardArgs& args, Workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  const Instance& instance = *FindInstance(args.q);
  SpreadParams p{MakeAttentionProblem(args)};
  SetBlocks(p, false, true, stream.device.index);
  CutSides(p, instance.forward_bytes, stream.device.index);
  instance.forward(p, static_cast<cudaStream_t>(stream.handle));
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  const Instance& instance = *FindInstance(args.q);
  SpreadParams p{MakeAttentionProblem(args)};
  if (args.dbias.defined()) {
    p.dbias = args.dbias.ptr<float>();
    p.dbias_pairs = reinterpret_cast<std::uintptr_t>(p.dbias) % 8 == 0 && p.keys % 2 == 0;
  }
  SetBlocks(p, args.dk.defined() || args.dv.defined(), args.dq.defined() || args.dbias.defined(),
            stream.device.index);
  CutSides(p, instance.backward_bytes, stream.device.index);
  instance.backward(p, static_cast<cudaStream_t>(stream.handle));
}

}  // namespace

const EvoAttentionImplementation kSpreadEvoAttention = {
    "cuda sm80 spread",
    DeviceType::kCuda,
    {SupportsForward, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward, NoWorkspace<ops::EvoAttentionBackwardArgs>, Backward}};

}  // namespace megafold::cuda
