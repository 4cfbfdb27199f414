// A small attention on the CPU whose choice of implementation can be seen: the vectorised backward
// asks for a workspace, the reference for none.
#pragma once

#include <cstdint>
#include <vector>

#include "megafold/ops/evo_attention.h"

namespace megafold::tuning::test {

class Attention {
 public:
  Attention() {
    const auto view = [this](std::initializer_list<std::int64_t> sizes) {
      TensorView made = MakeView(nullptr, DType::kFloat32, sizes);
      made.data = memory_.emplace_back(static_cast<std::size_t>(made.numel()), 0.25F).data();
      return made;
    };
    args_.q = view({1, 2, 5, 1, 8});
    args_.k = view({1, 2, 7, 1, 8});
    args_.v = view({1, 2, 7, 1, 8});
    args_.bias = view({1, 1, 1, 5, 7});
    args_.out = view({1, 2, 5, 1, 8});
    args_.lse = view({1, 2, 1, 5});
    args_.dout = view({1, 2, 5, 1, 8});
    args_.dq = view({1, 2, 5, 1, 8});
    args_.dk = view({1, 2, 7, 1, 8});
    args_.dv = view({1, 2, 7, 1, 8});
    args_.dbias = view({1, 1, 1, 5, 7});
  }

  ops::TuningCandidates candidates() const { return ops::Candidates(args_); }
  std::string problem() const { return candidates().problem; }
  std::size_t Workspace() const { return ops::EvoAttentionBackwardWorkspace(args_); }
  bool UsesReference() const { return Workspace() == 0; }
  void Run() {
    scratch_.resize(Workspace());
    ops::EvoAttentionBackward(args_, {scratch_.data(), scratch_.size()}, {});
  }

 private:
  std::vector<std::vector<float>> memory_;
  std::vector<std::byte> scratch_;
  ops::EvoAttentionBackwardArgs args_;
};

}  // namespace megafold::tuning::test
