#include "backends/cuda/tiles/evo_attention.h"

#include <algorithm>
#include <cstdint>

#include "backends/cuda/attention/instances.h"
#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/cuda/spread/evo_attention_params.h"

namespace megafold::cuda {

struct TileInstance {
  DType type;
  int dim;
  void (*backward)(const TileParams&, cudaStream_t);
  int (*bytes)(const TileParams&);
};

namespace {

constexpr std::int64_t kTargetBlocks = 132;  // the multiprocessors of a large device

constexpr TileInstance kTiles[] = {
#define MEGAFOLD_TILE_ATTENTION(type, dim)                      \
  {DType::type, dim, TileAttention<DType::type, dim>::Backward, \
   TileAttention<DType::type, dim>::BackwardBytes},
#include "cuda_tile_attention_instances.inc"
#undef MEGAFOLD_TILE_ATTENTION
};

std::size_t RoundUp(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

// Whether the tiles were measured to be faster than what else takes the problem, up to the largest
// problems that were measured: with one tile of keys always, but for short vectors without a bias;
// else where there is work enough for the multiprocessors.
bool IsForTiles(const AttentionProblem& p) {
  const bool bias = p.bias.kind != TermKind::kNone, long_vectors = p.dim > 64;
  const bool few_rows = bias && p.rows <= 2;  // share a bias
  const double heads = static_cast<double>(p.groups * p.rows) * p.heads;
  const double scores = heads * p.queries * p.keys;
  const auto between = [&](int least, int most) { return scores >= least && scores <= most; };
  if (p.keys <= kScoreTile) return (bias || long_vectors) && between(0, 1 << 25);
  if (AreFewQueries(p)) return false;  // O is too coarse for their delta
  if (long_vectors) {
    return p.queries >= kScoreTile && between(1 << 19, few_rows ? 25 << 20 : 1 << 22);
  }
  if (!few_rows) return bias && between(3 << 16, 1 << 20);
  const bool one_wave = heads * CountScoreTiles(p.keys) <= kTargetBlocks;
  return (one_wave || p.dim <= 32) && between(1 << 22, 10'000'000);
}

// Cuts the rows of a group into chunks so that the parts of dBias take little memory; a block walks
// over the rows of a chunk.
void CutRows(TileParams& p, bool dbias) {
  const std::int64_t parts = std::clamp<std::int64_t>(kMaxBiasParts / BiasElements(p), 1, p.rows);
  const std::int64_t rows = dbias ? (p.rows + parts - 1) / parts : 1;
  p.chunk_rows = static_cast<unsigned>(rows);
  p.chunks = static_cast<unsigned>((p.rows + rows - 1) / rows);
}

std::size_t PartBytes(const TileParams& p, int parts, int vectors, int dim) {
  return static_cast<std::size_t>(parts) * p.batches * p.batch_rows * p.heads *
         CountScoreTiles(vectors) * kScoreTile * dim * sizeof(float);
}

}  // namespace

TileBackwardPlan PlanTileBackward(const ops::EvoAttentionBackwardArgs& args) {
  TileBackwardPlan plan;
  plan.params = TileParams{MakeAttentionProblem(args)};
  TileParams& p = plan.params;
  const TileInstance* const instance = FindInstance(kTiles, args.q);
  if (instance == nullptr || !IsForTiles(p)) return plan;
  CutRows(p, args.dbias.defined());
  if (p.chunks > 1 && args.dbias.defined()) {
    plan.dbias_parts = RoundUp(sizeof(float) * p.chunks * BiasElements(p));
  }
  const int key_tiles = CountScoreTiles(p.keys), query_tiles = CountScoreTiles(p.queries);
  const std::int64_t blocks = key_tiles * p.heads * p.groups * p.chunks;
  const int split = std::clamp<std::int64_t>(kTargetBlocks / blocks, 1, query_tiles);
  p.query_tiles = (query_tiles + split - 1) / split;
  if (key_tiles > 1 && args.dq.defined()) {
    plan.dq_parts = PartBytes(p, key_tiles, p.queries, instance->dim);
  }
  if (p.QueryParts() > 1) {
    plan.key_parts = PartBytes(p, p.QueryParts(), p.keys, instance->dim);
  }
  // A second stage hides copies under the tile before.
  const int limit = SharedLimit(args.q.device.index);
  p.stages = p.query_tiles > 1 ? 2 : 1;
  if (instance->bytes(p) > limit) p.stages = 1;
  if (instance->bytes(p) <= limit) plan.instance = instance;
  return plan;
}

void RunTileBackward(const ops::EvoAttentionBackwardArgs& args, const TileBackwardPlan& plan,
                     Workspace workspace, Stream stream) {
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  char* memory = static_cast<char*>(workspace.data);
  TileParams p = plan.params;
  if (args.dbias.defined()) {
    p.dbias = plan.dbias_parts > 0 ? reinterpret_cast<float*>(memory) : args.dbias.ptr<float>();
    p.dbias_vectors = reinterpret_cast<std::uintptr_t>(p.dbias) % 16 == 0 && p.keys % 4 == 0;
    memory += plan.dbias_parts;
  }
  const auto take = [&](float*& parts, std::size_t bytes) {
    if (bytes > 0) parts = reinterpret_cast<float*>(memory);
    memory += bytes;
  };
  take(p.dq_parts, plan.dq_parts);
  take(p.dk_parts, plan.key_parts);
  take(p.dv_parts, plan.key_parts);
  plan.instance->backward(p, queue);
  if (plan.dbias_parts > 0) {
    SumParts(p.dbias, args.dbias.ptr<float>(), p.chunks, BiasElements(p), queue);
  }
}

}  // namespace megafold::cuda
