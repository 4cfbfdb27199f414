#include "backends/cuda/short_keys_sm90/evo_attention.h"

#include <string>

#include "backends/cuda/attention/make_problem.h"
#include "backends/cuda/device/guard.h"
#include "backends/cuda/short_keys_sm90/evo_attention_params.h"
#include "backends/cuda/sm80/evo_attention.h"
#include "backends/cuda/sm90/tensor_map.h"
#include "megafold/core/error.h"

namespace megafold::cuda {
namespace {

// What the path takes: with fewer queries or keys most of a tile is empty.
constexpr std::int64_t kMinQueries = 33;
constexpr std::int64_t kMinKeys = 65;

std::int64_t QueryTiles(std::int64_t queries) {
  return (queries + kHopperShortQueries - 1) / kHopperShortQueries;
}

Support SupportsOperands(const TensorView& q, const TensorView& k, const TensorView& v,
                         const TensorView& bias, float scale) {
  if (bias.defined()) return Support::No("a bias");
  if (!IsHopper(q.device.index)) return Support::No("the device is not of compute capability 9.0");
  const Support sizes = SupportsAttention(q, k, bias);
  if (!sizes) return sizes;
  if ((q.dtype != DType::kBFloat16 && q.dtype != DType::kFloat16) || q.size(4) % 8 != 0 ||
      q.size(4) > kHopperShortDim) {
    return Support::No(StrCat("no kernel for ", Name(q.dtype), " with head dimension ", q.size(4)));
  }
  if (k.size(2) > kHopperShortKeys) {
    return Support::No(StrCat("more than ", kHopperShortKeys, " keys"));
  }
  if (q.size(2) < kMinQueries || k.size(2) < kMinKeys) {
    return Support::No(StrCat("fewer than ", kMinQueries, " queries or ", kMinKeys, " keys"));
  }
  for (int dim = 0; dim < 5; ++dim) {
    if (q.size(dim) == 0) return Support::No("the problem is empty");
  }
  // A block's counters step over the end by as much as there are blocks.
  constexpr std::int64_t kMaxTiles = 0x7FFF0000;
  if (q.size(0) * q.size(1) * q.size(3) * QueryTiles(q.size(2)) > kMaxTiles) {
    return Support::No("more than 2^31 tiles");
  }
  // Scores begin with terms / scale, and -inf must stay -inf.
  constexpr float kMinScale = 1e-6F;
  if (!(scale >= kMinScale)) return Support::No("the scale is next to 0 or negative");
  for (const TensorView* view : {&q, &k, &v}) {
    if (const char* refusal = TensorMapRefusal(*view)) return Support::No(refusal);
  }
  return Support::Yes();
}

Support SupportsForward(const ops::EvoAttentionForwardArgs& args) {
  const Support operands = SupportsOperands(args.q, args.k, args.v, args.bias, args.scale);
  if (!operands) return operands;
  if (const char* refusal = TensorMapRefusal(args.out)) return Support::No(refusal);
  return Support::Yes();
}

Support SupportsBackward(const ops::EvoAttentionBackwardArgs& args) {
  const Support operands = SupportsOperands(args.q, args.k, args.v, args.bias, args.scale);
  if (!operands) return operands;
  for (const TensorView* view : {&args.dout, &args.dq, &args.dk, &args.dv}) {
    if (!view->defined()) continue;
    if (const char* refusal = TensorMapRefusal(*view)) return Support::No(refusal);
  }
  return Support::Yes();
}

template <typename Args>
HopperShortParams MakeParams(const Args& args, int query_box) {
  HopperShortParams p;
  static_cast<AttentionProblem&>(p) = MakeAttentionProblem(args);
  p.items = static_cast<int>(p.batches * p.batch_rows) * p.heads;
  p.q_map = MakeTensorMap(args.q, kHopperShortDim, query_box);
  p.k_map = MakeTensorMap(args.k, kHopperShortDim, kHopperShortKeys);
  p.v_map = MakeTensorMap(args.v, kHopperShortDim, kHopperShortKeys);
  return p;
}

std::size_t ForwardWorkspace(const ops::EvoAttentionForwardArgs&) {
  return sizeof(unsigned long long);
}

void Forward(const ops::EvoAttentionForwardArgs& args, Workspace workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  HopperShortParams p = MakeParams(args, 2 * kHopperShortQueries);
  p.parts = (p.queries + 2 * kHopperShortQueries - 1) / (2 * kHopperShortQueries);
  p.items *= p.parts;
  p.out_map = MakeTensorMap(args.out, kHopperShortDim, kHopperShortOutRows);
  p.dealt = static_cast<unsigned long long*>(workspace.data);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  args.q.dtype == DType::kBFloat16 ? HopperShortKeysAttention<DType::kBFloat16>::Forward(p, queue)
                                   : HopperShortKeysAttention<DType::kFloat16>::Forward(p, queue);
}

void Backward(const ops::EvoAttentionBackwardArgs& args, Workspace, Stream stream) {
  const DeviceGuard guard(stream.device.index);
  HopperShortParams p = MakeParams(args, kHopperShortQueries);
  p.query_tiles = static_cast<int>(QueryTiles(p.queries));
  p.dout_map = MakeTensorMap(args.dout, kHopperShortDim, kHopperShortQueries);
  if (p.dq.data != nullptr) p.dq_map = MakeTensorMap(args.dq, kHopperShortDim, kHopperShortQueries);
  if (p.dk.data != nullptr) p.dk_map = MakeTensorMap(args.dk, kHopperShortDim, kHopperShortKeys);
  if (p.dv.data != nullptr) p.dv_map = MakeTensorMap(args.dv, kHopperShortDim, kHopperShortKeys);
  auto* const queue = static_cast<cudaStream_t>(stream.handle);
  args.q.dtype == DType::kBFloat16 ? HopperShortKeysAttention<DType::kBFloat16>::Backward(p, queue)
                                   : HopperShortKeysAttention<DType::kFloat16>::Backward(p, queue);
}

}  // namespace

const EvoAttentionImplementation kHopperShortKeysEvoAttention = {
    "cuda sm90a short",
    DeviceType::kCuda,
    {SupportsForward, ForwardWorkspace, Forward},
    {SupportsBackward, NoWorkspace<ops::EvoAttentionBackwardArgs>, Backward}};

}  // namespace megafold::cuda
