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
  void (*backward)(const SpreadParams&, cudaStream_t);
};

// The generated list is sorted by head dimension.
constexpr Instance kInstances[] = {
#define MEGAFOLD_SPREAD_ATTENTION(type, dim)                     \
  {DType::type, dim, SpreadAttention<DType::type, dim>::Forward, \
   SpreadAttention<DType::type, dim>::Backward},
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

SpreadSide CutSide(int length, int most) {
  const int rounds = (length + kSpreadParts * most - 1) / (kSpreadParts * most);
  const int parts = kSpreadParts * rounds;
  return {((length + parts - 1) / parts + 15) / 16 * 16, rounds};
}

std::int64_t CountBlocks(const SpreadParams& p, int tiles, int length, std::int64_t rows) {
  const std::int64_t vectors = tiles * 16;
  return (length + vectors - 1) / vectors * p.groups * rows * p.heads;
}

std::int64_t Multiprocessors(int device) {
  int count = 0;
  CheckCuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
            "cudaDeviceGetAttribute");
  return count;
}

// Sets the tiles of a block and the numbers of blocks: as small a block as does not add to the
// number of times that all multiprocessors are filled. Results do not depend on it: a tile is
// summed over its parts alike in every block. Gives that number.
std::int64_t SetBlocks(SpreadParams& p, bool keeps_keys, bool keeps_queries, int device) {
  const std::int64_t multiprocessors = Multiprocessors(device);
  std::int64_t fewest = INT64_MAX;
  for (int tiles = 1; tiles <= kSpreadMaxTiles; ++tiles) {
    const std::int64_t keys = keeps_keys ? CountBlocks(p, tiles, p.keys, p.rows) : 0;
    const std::int64_t queries =
        keeps_queries ? CountBlocks(p, tiles, p.queries, p.dbias != nullptr ? 1 : p.rows) : 0;
    const std::int64_t fills = (keys + queries + multiprocessors - 1) / multiprocessors;
    if (fills >= fewest) continue;
    fewest = fills;
    p.tiles = tiles;
    p.key_blocks = keys;
    p.query_blocks = queries;
  }
  return fewest;
}

// Pairs of keys lie side by side in the bias.
bool HasPairs(const SpreadParams& p) { return p.bias.aligned && p.keys % 2 == 0; }

SpreadParams MakeForwardParams(const ops::EvoAttentionForwardArgs& args, int dim) {
  SpreadParams p{MakeAttentionProblem(args)};
  p.key_side = CutSide(p.keys, SpreadForwardStep(dim));
  p.bias_pairs = HasPairs(p);
  return p;
}

SpreadParams MakeBackwardParams(const ops::EvoAttentionBackwardArgs& args, int dim) {
  SpreadParams p{MakeAttentionProblem(args)};
  const int step = SpreadBackwardStep(dim);
  p.key_side = CutSide(p.keys, step);
  p.query_side = CutSide(p.queries, step);
  p.bias_pairs = HasPairs(p);
  if (args.dbias.defined()) {
    p.dbias = args.dbias.ptr<float>();
    p.dbias_pairs = reinterpret_cast<std::uintptr_t>(p.dbias) % 8 == 0 && p.keys % 2 == 0;
  }
  return p;
}

// ---- What the path takes: what it can do and, as measured, does faster than the others. ----

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
  SpreadParams p = MakeForwardParams(args, FindInstance(args.q)->dim);
  const Support size = SupportsSize(p);
  if (!size) return size;
  if (SetBlocks(p, false, true, args.q.device.index) > 1) {
    return Support::No("more queries than one block for each multiprocessor holds");
  }
  if (p.bias.kind == TermKind::kStorage && p.tiles == kSpreadMaxTiles) {
    return Support::No("a bias of 16 bits and more queries than blocks of two tiles hold");
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
  SpreadParams p = MakeForwardParams(args, instance.dim);
  SetBlocks(p, false, true, stream.device.index);
  instance.forward(p, static_cast<cudaStream_t>(stream.handle));
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  const Instance& instance = *FindInstance(args.q);
  SpreadParams p = MakeBackwardParams(args, instance.dim);
  SetBlocks(p, args.dk.defined() || args.dv.defined(), args.dq.defined() || args.dbias.defined(),
            stream.device.index);
  instance.backward(p, static_cast<cudaStream_t>(stream.handle));
}

}  // namespace

const EvoAttentionImplementation kSpreadEvoAttention = {
    "cuda sm80 spread",
    DeviceType::kCuda,
    {SupportsForward, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward, NoWorkspace<ops::EvoAttentionBackwardArgs>, Backward}};

}  // namespace megafold::cuda
