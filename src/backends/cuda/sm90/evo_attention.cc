#include "backends/cuda/sm90/evo_attention.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/sm90/evo_attention_pack.h"
#include "backends/cuda/sm90/evo_attention_params.h"
#include "backends/cuda/sm90/tensor_map.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

// ---- The kernels that were built: one entry a storage type and padded head dimension. ----

struct Instance {
  DType type;
  int dim;
  void (*forward)(const HopperAttentionParams&, LaunchChain&);
  void (*keys)(const HopperAttentionParams&, LaunchChain&);
  void (*queries)(const HopperAttentionParams&, LaunchChain&);
};

template <DType kType, int kDim>
constexpr Instance MakeInstance() {
  using Kernels = HopperAttention<kType, kDim>;
  return {kType, kDim, Kernels::Forward, Kernels::BackwardKeys, Kernels::BackwardQueries};
}

// The generated list is sorted by head dimension.
constexpr Instance kInstances[] = {
#define MEGAFOLD_HOPPER_ATTENTION(type, dim) MakeInstance<DType::type, dim>(),
#include "cuda_hopper_attention_instances.inc"
#undef MEGAFOLD_HOPPER_ATTENTION
};

const Instance* FindInstance(const TensorView& q) {
  for (const Instance& instance : kInstances) {
    if (instance.type == q.dtype && instance.dim >= q.size(4)) return &instance;
  }
  return nullptr;
}

// ---- What the path takes. ----

constexpr float kLog2E = 1.44269504088896340736F;
constexpr std::int64_t kMinQueries = 33;  // fewer leave most of a tile empty
constexpr std::int64_t kMinKeys = 65;     // with fewer, delta wants more care than O in 16 bits has

int PaddedDim(const TensorView& q) { return FindInstance(q)->dim; }

int Tiles(std::int64_t length) {
  return static_cast<int>((length + kHopperTile - 1) / kHopperTile);
}

// Blocks of dQ and dBias that share the keys out.
int KeyBlocks(const ops::EvoAttentionBackwardArgs& args) {
  if (!args.bias.defined()) return 1;
  const int tiles = Tiles(args.k.size(2));
  const auto most = [&](bool alone) {
    return kQueriesConsumers * BiasGradientTiles(PaddedDim(args.q), alone);
  };
  return tiles <= most(true) ? 1 : (tiles + most(false) - 1) / most(false);
}

Support SupportsOperands(const TensorView& q, const TensorView& k, const TensorView& v,
                         const TensorView& bias, float scale) {
  // The matrix units add terms / scale to <q, k>.
  constexpr float kMinScale = 1e-6F;
  if (!(std::abs(scale) >= kMinScale)) return Support::No("the scale is next to 0");
  if (!IsHopper(q.device.index)) return Support::No("the device is not of compute capability 9.0");
  if (q.size(4) % 8 != 0 || FindInstance(q) == nullptr) {
    return Support::No(StrCat("no kernel for ", Name(q.dtype), " with head dimension ", q.size(4)));
  }
  if (q.size(2) < kMinQueries || k.size(2) < kMinKeys) {
    return Support::No(StrCat("fewer than ", kMinQueries, " queries or ", kMinKeys, " keys"));
  }
  const Support sizes = SupportsAttention(q, k, bias);
  if (!sizes) return sizes;
  if (q.size(0) * q.size(1) * q.size(3) * Tiles(std::max(q.size(2), k.size(2))) > 0x7FFFFFFF) {
    return Support::No("more than 2^31 tiles");
  }
  for (const TensorView* view : {&q, &k, &v}) {
    if (const char* refusal = TensorMapRefusal(*view)) return Support::No(refusal);
  }
  return Support::Yes();
}

Support SupportsBackward(const ops::EvoAttentionBackwardArgs& args) {
  const Support operands = SupportsOperands(args.q, args.k, args.v, args.bias, args.scale);
  if (!operands) return operands;
  for (const TensorView* view : {&args.dout, &args.out, &args.dq, &args.dk, &args.dv}) {
    if (!view->defined()) continue;
    if (const char* refusal = TensorMapRefusal(*view)) return Support::No(refusal);
  }
  if (KeyBlocks(args) > kMaxKeyBlocks) {
    return Support::No(
        StrCat("more than ", kMaxKeyBlocks, " blocks would share the keys of a bias"));
  }
  return Support::Yes();
}

// ---- Workspace of the backward: the packed operands, then parts of dBias. ----

std::size_t BiasPartBytes(const AttentionProblem& p) {
  return static_cast<std::size_t>(p.groups * p.heads) * static_cast<std::size_t>(p.queries) *
         static_cast<std::size_t>(p.keys) * 4;
}

// dBias is summed in parts where one block for a strip of queries would leave multiprocessors idle.
// The number depends on the shape alone, so results do not change with the device; 132 is what the
// largest Hopper has.
int RowChunks(const AttentionProblem& p, int key_blocks, std::size_t element_bytes) {
  constexpr std::int64_t kMultiprocessors = 132;
  constexpr std::int64_t kRowsOfSetUp = 4;  // what a block's start and end cost, in rows
  const std::int64_t strips =
      static_cast<std::int64_t>(key_blocks) * Tiles(p.queries) * p.heads * p.groups;
  const auto part = static_cast<std::int64_t>(BiasPartBytes(p));
  const std::int64_t q_bytes = p.batches * p.batch_rows * p.heads * p.queries * p.dim *
                               static_cast<std::int64_t>(element_bytes);
  std::int64_t best = 1;
  std::int64_t best_cost = INT64_MAX;
  for (std::int64_t chunks = 1; chunks <= std::min<std::int64_t>(64, p.rows); ++chunks) {
    if (chunks > 1 && chunks * part > q_bytes / 2) break;
    const std::int64_t waves = (strips * chunks + kMultiprocessors - 1) / kMultiprocessors;
    const std::int64_t cost = waves * ((p.rows + chunks - 1) / chunks + kRowsOfSetUp);
    if (cost < best_cost) {
      best = chunks;
      best_cost = cost;
    }
  }
  return static_cast<int>(best);
}

// Cuts the workspace; with no memory it only counts.
class Workspaces {
 public:
  explicit Workspaces(void* data) : data_(static_cast<char*>(data)) {}
  // Null for nothing, and where there is no memory.
  template <typename T = float>
  T* Take(std::size_t bytes) {
    char* const at = data_ == nullptr || bytes == 0 ? nullptr : data_ + used_;
    used_ += (bytes + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  char* data_;
  std::size_t used_ = 0;
};

// A backward call with its operands packed into `memory`; with none it only counts bytes.
struct BackwardPlan {
  HopperAttentionParams params;
  float* bias_by_queries = nullptr;
  float* bias_by_keys = nullptr;
  void* mask_columns = nullptr;
  std::uint16_t* statistics = nullptr;
  float* parts = nullptr;  // where dBias has more than one
  std::size_t bytes = 0;

  BackwardPlan(const ops::EvoAttentionBackwardArgs& args, void* memory);
};

bool WantsQueries(const ops::EvoAttentionBackwardArgs& args) {
  return args.dq.defined() || args.dbias.defined();
}
bool WantsKeys(const ops::EvoAttentionBackwardArgs& args) {
  return args.dk.defined() || args.dv.defined();
}

BackwardPlan::BackwardPlan(const ops::EvoAttentionBackwardArgs& args, void* memory) {
  HopperAttentionParams& p = params;
  static_cast<AttentionProblem&>(p) = MakeAttentionProblem(args);
  p.query_tiles = Tiles(p.queries);
  p.key_tiles = Tiles(p.keys);
  p.key_blocks = KeyBlocks(args);
  const int consumers = kQueriesConsumers * p.key_blocks;
  p.consumer_tiles = (p.key_tiles + consumers - 1) / consumers;
  p.scale_log2 = args.scale * kLog2E;

  Workspaces space(memory);
  if (WantsQueries(args)) bias_by_queries = space.Take(PackedBiasBytes(p));
  if (WantsKeys(args)) bias_by_keys = space.Take(PackedBiasBytes(p));
  mask_columns = space.Take(PackedMaskColumnsBytes(p));
  statistics = space.Take<std::uint16_t>(PackedStatisticsBytes(p));
  if (args.dbias.defined()) {
    p.row_chunks = RowChunks(p, p.key_blocks, SizeOf(args.q.dtype));
    p.dbias = args.dbias.ptr<float>();
    if (p.row_chunks > 1) {
      parts = space.Take(static_cast<std::size_t>(p.row_chunks) * BiasPartBytes(p));
      p.dbias = parts;
    }
  } else {
    // Enough blocks to fill the device; nothing is summed.
    const std::int64_t strips = p.groups * p.heads * p.query_tiles * p.key_blocks;
    p.row_chunks = static_cast<int>(
        std::clamp<std::int64_t>(528 / std::max<std::int64_t>(1, strips), 1, p.rows));
  }
  bytes = space.used();
}

std::size_t BackwardWorkspace(const ops::EvoAttentionBackwardArgs& args) {
  return BackwardPlan(args, nullptr).bytes;
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  LaunchChain chain(queue);
  const Instance& instance = *FindInstance(args.q);
  BackwardPlan plan(args, workspace.data);
  HopperAttentionParams& p = plan.params;
  const DType type = args.q.dtype;
  const int box = BoxColumns(instance.dim);
  p.q_map = MakeTensorMap(args.q, box);
  p.k_map = MakeTensorMap(args.k, box);
  p.v_map = MakeTensorMap(args.v, box);
  p.dout_map = MakeTensorMap(args.dout, box);
  if (args.dq.defined()) p.dq_map = MakeTensorMap(args.dq, box);
  if (args.dk.defined()) p.dk_map = MakeTensorMap(args.dk, box);
  if (args.dv.defined()) p.dv_map = MakeTensorMap(args.dv, box);
  // The shortest first: each may begin once all blocks of the one before have begun.
  p.mask_columns = PackMaskColumns(p, type, plan.mask_columns, chain);
  // dQ and dBias start products from the bias, in the units of <q, k>.
  PackBias(p, type, 1 / args.scale, plan.bias_by_queries, kLog2E, plan.bias_by_keys, chain);
  p.bias_by_queries = plan.bias_by_queries;
  p.bias_by_keys = plan.bias_by_keys;
  PackStatistics(p, type, plan.statistics, chain);
  p.statistics = plan.statistics;
  if (WantsKeys(args)) instance.keys(p, chain);
  p.packed = WantsKeys(args);
  if (WantsQueries(args)) instance.queries(p, chain);
  if (plan.parts != nullptr) {
    SumParts(plan.parts, args.dbias.ptr<float>(), p.row_chunks,
             static_cast<std::int64_t>(BiasPartBytes(p) / 4), queue);
  }
}

// ---- Forward: the bias and the mask are packed. ----

Support SupportsForward(const ops::EvoAttentionForwardArgs& args) {
  const Support operands = SupportsOperands(args.q, args.k, args.v, args.bias, args.scale);
  if (!operands) return operands;
  if (const char* refusal = TensorMapRefusal(args.out)) return Support::No(refusal);
  if (MakeAttentionProblem(args).rows < 2) return Support::No("a bias serves one row alone");
  return Support::Yes();
}

std::size_t ForwardWorkspace(const ops::EvoAttentionForwardArgs& args) {
  const AttentionProblem problem = MakeAttentionProblem(args);
  Workspaces space(nullptr);
  space.Take(PackedBiasBytes(problem));
  space.Take(PackedMaskColumnsBytes(problem));
  return space.used();
}

void Forward(const ops::EvoAttentionForwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  LaunchChain chain(static_cast<cudaStream_t>(stream.handle));
  const Instance& instance = *FindInstance(args.q);
  const DType type = args.q.dtype;
  HopperAttentionParams p;
  static_cast<AttentionProblem&>(p) = MakeAttentionProblem(args);
  p.query_tiles = Tiles(p.queries);
  p.key_tiles = Tiles(p.keys);
  p.scale_log2 = args.scale * kLog2E;
  const int box = BoxColumns(instance.dim);
  p.q_map = MakeTensorMap(args.q, box);
  p.k_map = MakeTensorMap(args.k, box);
  p.v_map = MakeTensorMap(args.v, box);
  p.out_map = MakeTensorMap(args.out, box);
  Workspaces space(workspace.data);
  float* const bias = space.Take(PackedBiasBytes(p));
  p.mask_columns = PackTerms(p, type, kLog2E, bias, space.Take(PackedMaskColumnsBytes(p)), chain);
  p.bias_by_queries = bias;
  instance.forward(p, chain);
}

}  // namespace

const EvoAttentionImplementation kHopperEvoAttention = {
    "cuda sm90a",
    DeviceType::kCuda,
    {SupportsForward, ForwardWorkspace, Forward},
    {SupportsBackward, BackwardWorkspace, Backward}};

}  // namespace megafold::cuda
