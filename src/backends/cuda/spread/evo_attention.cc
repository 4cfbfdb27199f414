#include "backends/cuda/spread/evo_attention.h"

#include <cstdint>

#include "backends/cuda/attention/instances.h"
#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/sm80/evo_attention_params.h"
#include "backends/cuda/spread/evo_attention_instances.h"
#include "backends/cuda/spread/evo_attention_limits.h"
#include "backends/cuda/spread/evo_attention_plan.h"
#include "backends/cuda/tiles/evo_attention.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

std::size_t BackwardWorkspace(const ops::EvoAttentionBackwardArgs& args) {
  if (const StripBackwardPlan plan = PlanStripBackward(args); plan.tiles > 0) return plan.workspace;
  if (const TileBackwardPlan plan = PlanTileBackward(args); plan.instance != nullptr) {
    return plan.Workspace();
  }
  const SpreadWorkspace bytes = SizeWorkspace(MakeBackwardParams(args));
  return bytes.delta + bytes.parts;
}

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
    {SupportsSpread<false>, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsSpread<false>, BackwardWorkspace, Backward}};

const EvoAttentionImplementation kWindowsSpreadEvoAttention = {
    "cuda sm80 spread windows",
    DeviceType::kCuda,
    {SupportsSpread<true>, NoWorkspace<ops::EvoAttentionForwardArgs>, Forward},
    {SupportsSpread<true>, BackwardWorkspace, Backward}};

}  // namespace megafold::cuda
