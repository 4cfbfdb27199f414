#include "backends/cuda/spread/evo_attention.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/spread/evo_attention_params.h"
#include "backends/cuda/strips/evo_attention_params.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

// ---- The kernels that were built: one entry a storage type and padded head dimension, the lists
// sorted by head dimension. ----

struct StripInstance {
  DType type;
  int dim;
  void (*forward)(const StripProblem&, int tiles, int shared_limit, cudaStream_t);
  void (*backward)(const StripProblem&, int tiles, float* dq_parts, int shared_limit, cudaStream_t);
};
constexpr StripInstance kStrips[] = {
#define MEGAFOLD_STRIP_ATTENTION(type, dim)                     \
  {DType::type, dim, StripAttention<DType::type, dim>::Forward, \
   StripAttention<DType::type, dim>::Backward},
#include "cuda_strip_attention_instances.inc"
#undef MEGAFOLD_STRIP_ATTENTION
};

struct SpreadInstance {
  DType type;
  int dim;
  void (*run)(const SpreadParams&, cudaStream_t);
  int (*bytes)(const SpreadParams&);
};
constexpr SpreadInstance kSpreads[] = {
#define MEGAFOLD_SPREAD_ATTENTION(type, dim)                      \
  {DType::type, dim, SpreadAttention<DType::type, dim>::Backward, \
   SpreadAttention<DType::type, dim>::BackwardBytes},
#include "cuda_spread_attention_instances.inc"
#undef MEGAFOLD_SPREAD_ATTENTION
};

template <typename Instances>
auto Find(const Instances& instances, const TensorView& q) -> decltype(&instances[0]) {
  for (const auto& instance : instances) {
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

// Bytes that a block may have.
int SharedLimit(int device) {
  return DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

SpreadSide CutSide(int length, int rounds) {
  const int parts = kSpreadParts * rounds;
  const int step = ((length + parts - 1) / parts + 15) / 16 * 16;
  return {step, (length + kSpreadParts * step - 1) / (kSpreadParts * step)};
}

// As few rounds as the shared memory of the device allows.
void CutSides(SpreadParams& p, int (*bytes)(const SpreadParams&), int device) {
  const int limit = SharedLimit(device);
  int rounds = 0;
  do {
    ++rounds;
    p.key_side = CutSide(p.keys, rounds);
    p.query_side = CutSide(p.queries, rounds);
  } while (bytes(p) > limit && std::max(p.key_side.step, p.query_side.step) > 16);
}

// Blocks of so many tiles of 16 vectors.
int CountTiles(int length, int tiles) { return (length + tiles * 16 - 1) / (tiles * 16); }

// Times that the device's multiprocessors are filled by this many blocks.
std::int64_t Fills(std::int64_t blocks, int device) {
  const std::int64_t multiprocessors = DeviceAttribute(cudaDevAttrMultiProcessorCount, device);
  return (blocks + multiprocessors - 1) / multiprocessors;
}

// Tiles of a block: as few as do not add to the number of times that all multiprocessors are
// filled. Results do not depend on it: a tile is summed alike in every block.
template <typename CountBlocks>
int ChooseTiles(int most, int device, const CountBlocks& count) {
  int best = 1;
  for (int tiles = 2; tiles <= most; ++tiles) {
    if (Fills(count(tiles), device) < Fills(count(best), device)) best = tiles;
  }
  return best;
}

std::int64_t ForwardBlocks(const StripProblem& p, int tiles) {
  return static_cast<std::int64_t>(CountTiles(p.queries, tiles)) * p.heads * p.layers;
}

int ForwardTiles(const StripProblem& p, int device) {
  const bool once = p.keys <= kStrip * kStripWarps;
  const int most = StripForwardTiles(p.dim, once);
  return ChooseTiles(most, device, [&](int tiles) { return ForwardBlocks(p, tiles); });
}

// The backward in strips, where there is one.
struct StripBackwardPlan {
  StripProblem problem;
  int tiles = 0;  // none: the problem is for the other kernel
  std::size_t workspace = 0;
};

StripBackwardPlan PlanStripBackward(const ops::EvoAttentionBackwardArgs& args) {
  StripBackwardPlan plan;
  const AttentionProblem problem = MakeAttentionProblem(args);
  StripProblem& p = plan.problem;
  const StripInstance& instance = *Find(kStrips, args.q);
  const int most = StripBackwardTiles(instance.dim);
  // A bias whose gradient is the sum over several rows has one owner in the other kernel; a bias
  // without vectors and grids that leave many multiprocessors without work are faster there.
  if (most == 0 || (args.dbias.defined() && problem.rows > 1) || !MakeStripProblem(problem, p)) {
    return plan;
  }
  const std::int64_t rows = static_cast<std::int64_t>(p.heads) * p.layers;
  const int device = args.q.device.index;
  const bool fills = CountTiles(p.keys, most) * rows * 3 >=
                     DeviceAttribute(cudaDevAttrMultiProcessorCount, device) * std::int64_t{2};
  const bool vectors = p.bias_kind == TermKind::kNone || p.bias_vectors;
  if (!fills || !vectors) return plan;
  if (args.dbias.defined()) {
    p.dbias = args.dbias.ptr<float>();
    p.dbias_vectors = reinterpret_cast<std::uintptr_t>(p.dbias) % 16 == 0 && p.keys % 4 == 0;
  }
  plan.tiles =
      ChooseTiles(most, device, [&](int tiles) { return CountTiles(p.keys, tiles) * rows; });
  if (args.dq.defined()) {
    plan.workspace = static_cast<std::size_t>(rows) * CountTiles(p.keys, plan.tiles) * p.queries *
                     instance.dim * sizeof(float);
  }
  return plan;
}

std::size_t BackwardWorkspace(const ops::EvoAttentionBackwardArgs& args) {
  return PlanStripBackward(args).workspace;
}

// Sets the tiles of a block and the numbers of blocks.
void SetBlocks(SpreadParams& p, bool keeps_keys, bool keeps_queries, int device) {
  const std::int64_t key_rows = p.groups * p.rows * p.heads;
  const std::int64_t query_rows = p.dbias != nullptr ? p.groups * p.heads : key_rows;
  const auto keys = [&](int tiles) { return keeps_keys ? CountTiles(p.keys, tiles) : 0; };
  const auto queries = [&](int tiles) { return keeps_queries ? CountTiles(p.queries, tiles) : 0; };
  p.tiles = ChooseTiles(kSpreadMaxTiles, device, [&](int tiles) {
    return keys(tiles) * key_rows + queries(tiles) * query_rows;
  });
  p.key_blocks = keys(p.tiles);
  p.query_blocks = queries(p.tiles);
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
  if (Find(kSpreads, q) == nullptr) {
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
  const AttentionProblem problem = MakeAttentionProblem(args);
  const Support size = SupportsSize(problem);
  if (!size) return size;
  StripProblem p;
  const Support strips = MakeStripProblem(problem, p);
  if (!strips) return strips;
  const int device = args.q.device.index;
  if (Fills(ForwardBlocks(p, ForwardTiles(p, device)), device) > 1) {
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
  StripProblem p;
  const Support support = MakeStripProblem(MakeAttentionProblem(args), p);
  if (!support) Fail(ErrorCode::kUnsupported, "cuda sm80 spread: ", support.reason());
  Find(kStrips, args.q)
      ->forward(p, ForwardTiles(p, stream.device.index), SharedLimit(stream.device.index),
                static_cast<cudaStream_t>(stream.handle));
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  if (const StripBackwardPlan plan = PlanStripBackward(args); plan.tiles > 0) {
    Find(kStrips, args.q)
        ->backward(plan.problem, plan.tiles, static_cast<float*>(workspace.data),
                   SharedLimit(stream.device.index), static_cast<cudaStream_t>(stream.handle));
    return;
  }
  const SpreadInstance& instance = *Find(kSpreads, args.q);
  SpreadParams p{MakeAttentionProblem(args)};
  if (args.dbias.defined()) {
    p.dbias = args.dbias.ptr<float>();
    p.dbias_pairs = reinterpret_cast<std::uintptr_t>(p.dbias) % 8 == 0 && p.keys % 2 == 0;
  }
  SetBlocks(p, args.dk.defined() || args.dv.defined(), args.dq.defined() || args.dbias.defined(),
            stream.device.index);
  CutSides(p, instance.bytes, stream.device.index);
  instance.run(p, static_cast<cudaStream_t>(stream.handle));
}

}  // namespace

const EvoAttentionImplementation kSpreadEvoAttention = {
    "cuda sm80 spread",
    DeviceType::kCuda,
    {SupportsForward, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward, BackwardWorkspace, Backward}};

}  // namespace megafold::cuda
