#include "backends/cuda/spread/evo_attention_plan.h"

#include <algorithm>

#include "backends/cuda/attention/instances.h"
#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/cuda/spread/evo_attention_instances.h"

namespace megafold::cuda {

std::int64_t Fills(std::int64_t blocks, int device) {
  const std::int64_t multiprocessors = DeviceAttribute(cudaDevAttrMultiProcessorCount, device);
  return (blocks + multiprocessors - 1) / multiprocessors;
}

namespace {

SpreadSide CutSide(int length, int rounds) {
  const int parts = kSpreadParts * rounds;
  const int step = ((length + parts - 1) / parts + 15) / 16 * 16;
  return {step, (length + kSpreadParts * step - 1) / (kSpreadParts * step)};
}

// Blocks of so many tiles of 16 vectors.
int CountTiles(int length, int tiles) { return (length + tiles * 16 - 1) / (tiles * 16); }

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

bool IsDeltaFromScores(const AttentionProblem& p) { return p.keys <= kFewKeys || AreFewQueries(p); }

}  // namespace

void CutSides(SpreadParams& p, int (*bytes)(const SpreadParams&), int device) {
  const int limit = SharedLimit(device);
  int rounds = 0;
  do {
    ++rounds;
    p.key_side = CutSide(p.keys, rounds);
    p.query_side = CutSide(p.queries, rounds);
  } while (bytes(p) > limit && std::max(p.key_side.step, p.query_side.step) > 16);
}

std::int64_t ForwardBlocks(const StripProblem& p, int tiles) {
  return static_cast<std::int64_t>(CountTiles(p.queries, tiles)) * p.heads * p.layers;
}

int ForwardTiles(const StripProblem& p, int device) {
  const bool once = p.keys <= kStrip * kStripWarps;
  const int most = StripForwardTiles(p.dim, once);
  return ChooseTiles(most, device, [&](int tiles) { return ForwardBlocks(p, tiles); });
}

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

SpreadParams MakeBackwardParams(const ops::EvoAttentionBackwardArgs& args) {
  SpreadParams p{MakeAttentionProblem(args)};
  if (!args.dbias.defined()) return p;
  const bool parts = BiasElements(p) * p.rows <= kMaxBiasParts;
  p.chunks = parts ? static_cast<unsigned>(p.rows) : 1;
  p.chunk_rows = parts ? 1 : static_cast<unsigned>(p.rows);
  return p;
}

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

SpreadParams MakeForwardParams(const AttentionProblem& problem, int dim, int device) {
  SpreadParams p{problem};
  SetBlocks(p, dim, /*keeps_keys=*/false, /*keeps_queries=*/true, device);
  return p;
}

}  // namespace megafold::cuda
