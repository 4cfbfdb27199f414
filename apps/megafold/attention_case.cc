#include "apps/megafold/attention_case.h"

#include <algorithm>
#include <limits>

#include "megafold/core/error.h"

namespace megafold::apps {
namespace {

constexpr std::int64_t kCacheBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMostCopies = 8;
constexpr double kTolerance = 0.05;  // of the norm; bfloat16 takes some hundredths

std::int64_t Bytes(const std::vector<at::Tensor>& tensors) {
  std::int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += static_cast<std::int64_t>(tensor.nbytes());
  return bytes;
}

}  // namespace

AttentionCase::AttentionCase(const model::AttentionShape& shape, at::ScalarType type,
                             at::ScalarType bias, const at::Device& device)
    : shape_(shape),
      options_(at::TensorOptions().dtype(type).device(device)),
      bias_(bias),
      device_(torch_ops::ToDevice("the operands", device)) {
  copies_.push_back(MakeCopy());
  const std::int64_t wanted =
      device.is_cpu() ? 1 : 2 * kCacheBytes / std::max<std::int64_t>(1, Bytes(kept_));
  while (static_cast<std::int64_t>(copies_.size()) < std::min(wanted, kMostCopies)) {
    copies_.push_back(MakeCopy());
  }
}

TensorView AttentionCase::Keep(const char* name, const at::Tensor& tensor) {
  kept_.push_back(tensor);
  return torch_ops::ToView(name, tensor);
}

AttentionCase::Copy AttentionCase::MakeCopy() {
  const auto tokens = [this](std::int64_t length) {
    return std::vector<std::int64_t>{shape_.batch, shape_.rows, length, shape_.heads, shape_.dim};
  };
  const auto random = [this](const std::vector<std::int64_t>& sizes) {
    return at::randn(sizes, options_.dtype(at::kFloat)).to(options_.dtype());
  };
  const at::TensorOptions fp32 = options_.dtype(at::kFloat);
  const std::vector<std::int64_t> pairs{shape_.batch, 1, shape_.heads, shape_.queries, shape_.keys};
  Copy copy;
  ops::EvoAttentionForwardArgs& forward = copy.forward;
  forward.q = Keep("q", random(tokens(shape_.queries)));
  forward.k = Keep("k", random(tokens(shape_.keys)));
  forward.v = Keep("v", random(tokens(shape_.keys)));
  forward.mask = Keep("mask", at::rand({shape_.batch, shape_.rows, 1, 1, shape_.keys}, fp32) < 0.9);
  forward.bias = Keep("bias", at::randn(pairs, fp32).to(bias_));
  forward.scale = 0.25F;
  const auto output = [this](Pass pass, const char* name, const at::Tensor& tensor) {
    if (copies_.empty()) Outputs(pass).push_back({name, tensor, {}});
    return Keep(name, tensor);
  };
  forward.out = output(Pass::kForward, "out", at::empty(tokens(shape_.queries), options_));
  forward.lse =
      Keep("lse", at::empty({shape_.batch, shape_.rows, shape_.heads, shape_.queries}, fp32));
  ops::EvoAttentionBackwardArgs& backward = copy.backward;
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.mask = forward.mask;
  backward.bias = forward.bias;
  backward.scale = forward.scale;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.dout = Keep("dout", random(tokens(shape_.queries)));
  backward.dq = output(Pass::kBackward, "dq", at::empty(tokens(shape_.queries), options_));
  backward.dk = output(Pass::kBackward, "dk", at::empty(tokens(shape_.keys), options_));
  backward.dv = output(Pass::kBackward, "dv", at::empty(tokens(shape_.keys), options_));
  backward.dbias = output(Pass::kBackward, "dbias", at::empty(pairs, fp32));
  return copy;
}

tuning::SearchCase AttentionCase::Search(Pass pass) {
  if (pass == Pass::kBackward) {  // it reads what forward wrote
    Prepare(Pass::kForward);
    for (std::size_t i = 0; i < copies_.size(); ++i) Run(Pass::kForward, static_cast<int>(i));
  }
  const Copy& first = copies_.front();
  return {.measured = StrCat(shape_.use, ": q ", ShapeString(first.forward.q), ", k ",
                             ShapeString(first.forward.k)),
          .candidates = pass == Pass::kForward ? ops::Candidates(first.forward)
                                               : ops::Candidates(first.backward),
          .prepare = [this, pass] { Prepare(pass); },
          .run = [this, pass](int repetition) { Run(pass, repetition); },
          .check = [this, pass] { return Check(pass); }};
}

std::string AttentionCase::Check(Pass pass) {
  for (Output& output : Outputs(pass)) {
    const at::Tensor now = output.tensor.to(at::kFloat);
    if (!output.right.defined()) {
      if (!now.isfinite().all().item<bool>()) return StrCat(output.name, " is not finite");
      output.right = now.clone();
      continue;
    }
    const double error = (now - output.right).norm().item<double>();
    const double size = output.right.norm().item<double>();
    if (!(error <= kTolerance * size)) {
      return StrCat(output.name, " differs from the default's by ", error, " of ", size);
    }
  }
  return {};
}

void AttentionCase::Prepare(Pass pass) {
  const Copy& first = copies_.front();
  for (Output& output : Outputs(pass)) {
    output.tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  call_.emplace(kept_.front());
  workspace_ =
      call_->Allocate(pass == Pass::kForward ? ops::EvoAttentionForwardWorkspace(first.forward)
                                             : ops::EvoAttentionBackwardWorkspace(first.backward));
}

void AttentionCase::Run(Pass pass, int repetition) {
  const Copy& copy = copies_[static_cast<std::size_t>(repetition) % copies_.size()];
  if (pass == Pass::kForward) {
    ops::EvoAttentionForward(copy.forward, workspace_, call_->stream());
  } else {
    ops::EvoAttentionBackward(copy.backward, workspace_, call_->stream());
  }
}

}  // namespace megafold::apps
