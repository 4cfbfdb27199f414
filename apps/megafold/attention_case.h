// One attention as `megafold tune` measures it: operands in PyTorch's memory, called through
// libmegafold itself.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "megafold/ops/evo_attention.h"
#include "model/attention_shapes.h"
#include "torch_ops/tensors.h"
#include "tuning/search.h"

namespace megafold::apps {

enum class Pass { kForward, kBackward };

class AttentionCase {
 public:
  // Random operands on `device`, in as many copies as it takes that a cache has forgotten the first
  // when it comes again; a bool mask with one key in ten hidden. Backward computes every gradient.
  AttentionCase(const model::AttentionShape& shape, at::ScalarType type, at::ScalarType bias,
                const at::Device& device);
  AttentionCase(const AttentionCase&) = delete;
  AttentionCase& operator=(const AttentionCase&) = delete;

  // Valid as long as this object. Outputs are filled with NaN before each candidate, and compared
  // with the default's.
  tuning::SearchCase Search(Pass pass);
  Device device() const { return device_; }

 private:
  struct Copy {
    ops::EvoAttentionForwardArgs forward;
    ops::EvoAttentionBackwardArgs backward;
  };
  struct Output {
    const char* name;
    at::Tensor tensor;  // of the first copy
    at::Tensor right;   // what the default wrote, once it has run
  };
  TensorView Keep(const char* name, const at::Tensor& tensor);
  Copy MakeCopy();
  void Prepare(Pass pass);
  void Run(Pass pass, int repetition);
  std::string Check(Pass pass);
  std::vector<Output>& Outputs(Pass pass) { return outputs_[pass == Pass::kForward ? 0 : 1]; }

  model::AttentionShape shape_;
  at::TensorOptions options_;
  at::ScalarType bias_;
  Device device_;
  std::vector<at::Tensor> kept_;
  std::vector<Copy> copies_;
  std::array<std::vector<Output>, 2> outputs_;
  std::optional<torch_ops::CallScope> call_;
  Workspace workspace_;
};

}  // namespace megafold::apps
