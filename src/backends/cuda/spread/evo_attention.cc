#include "backends/cuda/spread/evo_attention.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "backends/cuda/attention/instances.h"
#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/cuda/spread/evo_attention_params.h"
#include "backends/cuda/strips/evo_attention_params.h"
#include "backends/cuda/tiles/evo_attention.h"
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
  void (*forward)(const SpreadParams&, cudaStream_t);
  int (*forward_bytes)(const SpreadParams&);
  void (*backward)(const SpreadParams&, cudaStream_t);
  int (*backward_bytes)(const SpreadParams&);
  void (*delta)(const SpreadParams&, float*, cudaStream_t);
};
constexpr SpreadInstance kSpreads[] = {
#define MEGAFOLD_SPREAD_ATTENTION(type, dim)         \
  {DType::type,                                      \
   dim,                                              \
   SpreadAttention<DType::type, dim>::Forward,       \
   SpreadAttention<DType::type, dim>::ForwardBytes,  \
   SpreadAttention<DType::type, dim>::Backward,      \
   SpreadAttention<DType::type, dim>::BackwardBytes, \
   SpreadAttention<DType::type, dim>::Delta},
#include "cuda_spread_attention_instances.inc"
#undef MEGAFOLD_SPREAD_ATTENTION
};

// ---- How a problem is cut. ----

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

bool IsDeltaFromScores(const AttentionProblem& p) { return p.keys <= kFewKeys || AreFewQueries(p); }

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
  const StripInstance* const instance = FindInstance(kStrips, args.q);
  if (instance == nullptr || IsDeltaFromScores(problem)) return plan;  // it is from O there
  const int most = StripBackwardTiles(instance->dim);
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
                     instance->dim * sizeof(float);
  }
  return plan;
}

// What the other backward needs in workspace, in bytes: delta where O is too coarse for it, then
// the parts of dBias.
struct SpreadWorkspace {
  std::size_t delta = 0, parts = 0;
};

std::int64_t BiasElements(const AttentionProblem& p) {
  return p.groups * p.heads * p.queries * p.keys;
}

SpreadWorkspace SizeWorkspace(const SpreadParams& p) {
  SpreadWorkspace bytes;
  const std::int64_t statistics = p.groups * p.rows * p.heads * p.queries;
  if (IsDeltaFromScores(p)) {
    bytes.delta = (static_cast<std::size_t>(statistics) * sizeof(float) + 255) / 256 * 256;
  }
  if (p.chunks > 1) {
    bytes.parts = static_cast<std::size_t>(p.chunks * BiasElements(p)) * sizeof(float);
  }
  return bytes;
}

// dBias gets a part for each row that shares it, as long as the parts take little memory; else a
// block walks over the rows. That depends on the shape alone, so results do not change with the
// device.
SpreadParams MakeBackwardParams(const ops::EvoAttentionBackwardArgs& args) {
  constexpr std::int64_t kMaxPartElements = std::int64_t{5} << 18;  // 5 MiB
  SpreadParams p{MakeAttentionProblem(args)};
  if (!args.dbias.defined()) return p;
  const bool parts = BiasElements(p) * p.rows <= kMaxPartElements;
  p.chunks = parts ? static_cast<unsigned>(p.rows) : 1;
  p.chunk_rows = parts ? 1 : static_cast<unsigned>(p.rows);
  return p;
}

std::size_t BackwardWorkspace(const ops::EvoAttentionBackwardArgs& args) {
  if (const StripBackwardPlan plan = PlanStripBackward(args); plan.tiles > 0) return plan.workspace;
  if (const TileBackwardPlan plan = PlanTileBackward(args); plan.instance != nullptr) {
    return plan.Workspace();
  }
  const SpreadWorkspace bytes = SizeWorkspace(MakeBackwardParams(args));
  return bytes.delta + bytes.parts;
}

// Sets the tiles of a block and the numbers of blocks.
void SetBlocks(SpreadParams& p, int dim, bool keeps_keys, bool keeps_queries, int device) {
  const std::int64_t key_rows = p.groups * p.rows * p.heads;
  const std::int64_t query_rows = p.dbias != nullptr ? p.groups * p.chunks * p.heads : key_rows;
  const auto keys = [&](int tiles) { return keeps_keys ? CountTiles(p.keys, tiles) : 0; };
  const auto queries = [&](int tiles) { return keeps_queries ? CountTiles(p.queries, tiles) : 0; };
  p.tiles = ChooseTiles(SpreadMaxTiles(dim), device, [&](int tiles) {
    return keys(tiles) * key_rows + queries(tiles) * query_rows;
  });
  p.key_blocks = keys(p.tiles);
  p.query_blocks = queries(p.tiles);
}

// The forward of vectors that are too long for strips.
SpreadParams MakeForwardParams(const AttentionProblem& problem, int dim, int device) {
  SpreadParams p{problem};
  SetBlocks(p, dim, /*keeps_keys=*/false, /*keeps_queries=*/true, device);
  return p;
}

// ---- What the path takes: what it can do and, as measured, does faster than the others. ----

constexpr std::int64_t kMaxGridPlaces = 65'535;  // of a grid's second and third dimension
constexpr std::int64_t kMaxBiasRows = 2;         // of a bias that serves few rows
constexpr std::int64_t kMaxWindows = 256;        // rows and heads of windows that share a bias

// Most scores of a problem, and what is said of one with more.
struct ScoreLimit {
  std::int64_t scores;
  const char* of;
};

ScoreLimit MaxScores(const AttentionProblem& p) {
  if (p.bias.kind == TermKind::kNone) {  // the path for short keys has longer vectors of few keys
    return {p.keys <= 128 && p.dim > 32 ? 1 << 19 : 2'500'000, " without a bias"};
  }
  const bool few_keys = p.keys <= kFewKeys;
  if (p.rows > kMaxBiasRows) {
    return {1 << (few_keys || !p.bias.aligned ? 19 : 20),
            " of a bias that serves more than 2 rows"};
  }
  if (few_keys) return {1 << 21, " of few keys"};
  if (SpreadHasForward(p.dim)) return {10'000'000, " of long vectors"};
  return {40'000'000, ""};
}

Support SupportsOperands(const TensorView& q, const TensorView& k, const TensorView& bias,
                         std::initializer_list<const TensorView*> vectors) {
  const Support sizes = SupportsAttention(q, k, bias);
  if (!sizes) return sizes;
  if (FindInstance(kSpreads, q) == nullptr) {
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

Support SupportsGrid(const AttentionProblem& p) {
  if (p.heads > kMaxGridPlaces || p.groups * p.rows > kMaxGridPlaces) {
    return Support::No(StrCat("more than ", kMaxGridPlaces, " heads or rows"));
  }
  return Support::Yes();
}

Support SupportsSize(const AttentionProblem& p) {
  const double scores = static_cast<double>(p.groups * p.rows) * p.heads * p.queries * p.keys;
  const ScoreLimit limit = MaxScores(p);
  if (scores > static_cast<double>(limit.scores)) {
    return Support::No(StrCat("more than ", limit.scores, " scores", limit.of));
  }
  return Support::Yes();
}

constexpr const char* kNoFewWindows = "no few windows that share a bias";

// Few windows that share a bias: the path for short keys would walk over their rows.
bool AreFewWindows(const AttentionProblem& p) {
  return p.bias.kind != TermKind::kNone && p.rows > 1 && p.queries <= 32 && p.keys <= 128 &&
         p.groups * p.rows * p.heads <= kMaxWindows;
}

// Blocks of the forward, or what keeps it from running.
Support CountForwardBlocks(const TensorView& q, const AttentionProblem& problem,
                           std::int64_t& blocks) {
  const int device = q.device.index;
  if (FindInstance(kStrips, q) == nullptr) {
    const SpreadParams p = MakeForwardParams(problem, FindInstance(kSpreads, q)->dim, device);
    blocks = p.query_blocks * p.groups * p.rows * p.heads;
    return Support::Yes();
  }
  StripProblem p;
  const Support strips = MakeStripProblem(problem, p);
  if (!strips) return strips;
  if (problem.rows > kMaxBiasRows && problem.keys > kFewKeys && p.bias_kind != TermKind::kNone &&
      !p.bias_vectors) {
    return Support::No("a bias that serves more than 2 rows does not lie on vectors");
  }
  blocks = ForwardBlocks(p, ForwardTiles(p, device));
  return Support::Yes();
}

template <bool kWindows>
Support SupportsForward(const ops::EvoAttentionForwardArgs& args) {
  const Support operands =
      SupportsOperands(args.q, args.k, args.bias, {&args.q, &args.k, &args.v, &args.out});
  if (!operands) return operands;
  const AttentionProblem problem = MakeAttentionProblem(args);
  const Support grid = SupportsGrid(problem);
  if (!grid) return grid;
  const Support size = SupportsSize(problem);
  if (!size) return size;
  if (kWindows && !AreFewWindows(problem)) return Support::No(kNoFewWindows);
  std::int64_t blocks = 0;
  const Support runs = CountForwardBlocks(args.q, problem, blocks);
  if (!runs) return runs;
  if (Fills(blocks, args.q.device.index) > 1) {
    return Support::No("more queries than one block for each multiprocessor holds");
  }
  return Support::Yes();
}

template <bool kWindows>
Support SupportsBackward(const ops::EvoAttentionBackwardArgs& args) {
  const Support operands = SupportsOperands(
      args.q, args.k, args.bias,
      {&args.q, &args.k, &args.v, &args.out, &args.dout, &args.dq, &args.dk, &args.dv});
  if (!operands) return operands;
  const AttentionProblem problem = MakeAttentionProblem(args);
  if (kWindows && !(args.dbias.defined() && AreFewWindows(problem))) {
    return Support::No(kNoFewWindows);
  }
  const Support grid = SupportsGrid(problem);
  if (!grid || PlanTileBackward(args).instance != nullptr) return grid;
  if (problem.bias.kind == TermKind::kNone && problem.keys <= kFewKeys &&
      !SpreadHasForward(problem.dim)) {
    return Support::No(StrCat("no bias and at most ", kFewKeys, " keys"));
  }
  return SupportsSize(problem);
}

// ---- The implementation's functions. ----

void Forward(const ops::EvoAttentionForwardArgs& args, Workspace, Stream stream) {
  const int device = stream.device.index;
  const DeviceGuard guard(device);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  const AttentionProblem problem = MakeAttentionProblem(args);
  const StripInstance* const strips = FindInstance(kStrips, args.q);
  if (strips == nullptr) {
    const SpreadInstance& instance = *FindInstance(kSpreads, args.q);
    SpreadParams p = MakeForwardParams(problem, instance.dim, device);
    CutSides(p, instance.forward_bytes, device);
    instance.forward(p, queue);
    return;
  }
  StripProblem p;
  const Support support = MakeStripProblem(problem, p);
  if (!support) Fail(ErrorCode::kUnsupported, "cuda sm80 spread: ", support.reason());
  strips->forward(p, ForwardTiles(p, device), SharedLimit(device), queue);
}

// delta from p and dp.
void ComputeDelta(SpreadParams p, const SpreadInstance& instance, float* delta, const TensorView& q,
                  cudaStream_t queue) {
  if (p.keys > kFewKeys) {
    CutSides(p, instance.forward_bytes, q.device.index);
    return instance.delta(p, delta, queue);
  }
  AttentionParams with_delta{p};
  with_delta.delta = delta;
  AttentionDelta(with_delta, q.dtype, queue);
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  if (const StripBackwardPlan plan = PlanStripBackward(args); plan.tiles > 0) {
    FindInstance(kStrips, args.q)
        ->backward(plan.problem, plan.tiles, static_cast<float*>(workspace.data),
                   SharedLimit(stream.device.index), static_cast<cudaStream_t>(stream.handle));
    return;
  }
  if (const TileBackwardPlan plan = PlanTileBackward(args); plan.instance != nullptr) {
    RunTileBackward(args, plan, workspace, stream);
    return;
  }
  const SpreadInstance& instance = *FindInstance(kSpreads, args.q);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  SpreadParams p = MakeBackwardParams(args);
  const SpreadWorkspace bytes = SizeWorkspace(p);
  if (args.dbias.defined()) {
    p.dbias = bytes.parts > 0
                  ? reinterpret_cast<float*>(static_cast<char*>(workspace.data) + bytes.delta)
                  : args.dbias.ptr<float>();
    p.dbias_pairs = reinterpret_cast<std::uintptr_t>(p.dbias) % 8 == 0 && p.keys % 2 == 0;
  }
  SetBlocks(p, instance.dim, args.dk.defined() || args.dv.defined(),
            args.dq.defined() || args.dbias.defined(), stream.device.index);
  if (bytes.delta > 0) {
    auto* const delta = static_cast<float*>(workspace.data);
    ComputeDelta(p, instance, delta, args.q, queue);
    p.delta = delta;
  }
  CutSides(p, instance.backward_bytes, stream.device.index);
  instance.backward(p, queue);
  if (bytes.parts > 0) {
    SumParts(p.dbias, args.dbias.ptr<float>(), p.chunks, BiasElements(p), queue);
  }
}

}  // namespace

const EvoAttentionImplementation kSpreadEvoAttention = {
    "cuda sm80 spread",
    DeviceType::kCuda,
    {SupportsForward<false>, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward<false>, BackwardWorkspace, Backward}};

const EvoAttentionImplementation kWindowsSpreadEvoAttention = {
    "cuda sm80 spread windows",
    DeviceType::kCuda,
    {SupportsForward<true>, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsBackward<true>, BackwardWorkspace, Backward}};

}  // namespace megafold::cuda
