#include "backends/cuda/attention/make_problem.h"

#include <cstdint>

namespace megafold::cuda {
namespace {

// A dimension of size 1 is shared by everything that indexes it.
std::int64_t SharedStride(const TensorView& view, int dim) {
  return view.size(dim) == 1 ? 0 : view.stride(dim);
}

AttentionOperand MakeOperand(const TensorView& view) {
  if (!view.defined()) return {};
  return {view.data,      view.stride(0), view.stride(1),
          view.stride(2), view.stride(3), IsAligned(view)};
}

TermKind KindOf(const TensorView& view) {
  if (!view.defined()) return TermKind::kNone;
  if (view.dtype == DType::kBool) return TermKind::kBool;
  return view.dtype == DType::kFloat32 ? TermKind::kFloat32 : TermKind::kStorage;
}

// What forward and backward have in common.
template <typename Args>
AttentionProblem MakeCommon(const Args& args, bool shared_bias) {
  AttentionProblem p;
  p.q = MakeOperand(args.q);
  p.k = MakeOperand(args.k);
  p.v = MakeOperand(args.v);
  p.out = MakeOperand(args.out);
  p.lse = args.lse.template ptr<float>();
  p.mask.kind = KindOf(args.mask);
  if (args.mask.defined()) {
    p.mask.data = args.mask.data;
    p.mask.batch = SharedStride(args.mask, 0);
    p.mask.row = SharedStride(args.mask, 1);
    p.mask.key = args.mask.stride(4);
  }
  p.bias.kind = KindOf(args.bias);
  if (args.bias.defined()) {
    p.bias.data = args.bias.data;
    p.bias.group = SharedStride(args.bias, 0);
    p.bias.head = SharedStride(args.bias, 2);
    p.bias.query = args.bias.stride(3);
    p.bias.key = args.bias.stride(4);
    p.bias.aligned = IsAligned(args.bias);
  }
  p.batches = args.q.size(0);
  p.batch_rows = args.q.size(1);
  p.queries = static_cast<int>(args.q.size(2));
  p.keys = static_cast<int>(args.k.size(2));
  p.heads = static_cast<int>(args.q.size(3));
  p.dim = static_cast<int>(args.q.size(4));
  p.groups = shared_bias ? 1 : p.batches;
  p.rows = shared_bias ? p.batches * p.batch_rows : p.batch_rows;
  p.scale = args.scale;
  p.allow_tf32 = args.allow_tf32;
  return p;
}

}  // namespace

bool IsAligned(const TensorView& view) {
  const std::size_t bytes = SizeOf(view.dtype);
  if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return false;
  for (int dim = 0; dim + 1 < view.rank; ++dim) {
    if (view.size(dim) > 1 && static_cast<std::size_t>(view.stride(dim)) * bytes % 16 != 0) {
      return false;
    }
  }
  return view.stride(view.rank - 1) == 1;
}

AttentionProblem MakeAttentionProblem(const ops::EvoAttentionForwardArgs& args) {
  const bool shared = !args.bias.defined() || args.bias.size(0) == 1 || args.bias.stride(0) == 0;
  return MakeCommon(args, shared);
}

AttentionProblem MakeAttentionProblem(const ops::EvoAttentionBackwardArgs& args) {
  // A bias that was expanded over the batches is one bias to read, but its gradient has the shape
  // of the expanded one.
  const bool shared = !args.bias.defined() || args.bias.size(0) == 1 ||
                      (args.bias.stride(0) == 0 && !args.dbias.defined());
  AttentionProblem p = MakeCommon(args, shared);
  p.dout = MakeOperand(args.dout);
  p.dq = MakeOperand(args.dq);
  p.dk = MakeOperand(args.dk);
  p.dv = MakeOperand(args.dv);
  return p;
}

}  // namespace megafold::cuda
