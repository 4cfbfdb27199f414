// One attention as `megafold tune` measures it: operands in PyTorch's memory, called through
// libmegafold itself.
#pragma once

#include <ATen/ATen.h>

#include <optional>
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

  // Valid as long as this object.
  tuning::SearchCase Search(Pass pass);
  Device device() const { return device_; }

 private:
  struct Copy {
    ops::EvoAttentionForwardArgs forward;
    ops::EvoAttentionBackwardArgs backward;
  };
  TensorView Keep(const char* name, const at::Tensor& tensor);
  Copy MakeCopy();
  void Prepare(Pass pass);
  void Run(Pass pass, int repetition);

  model::AttentionShape shape_;
  at::TensorOptions options_;
  at::ScalarType bias_;
  Device device_;
  std::vector<at::Tensor> kept_;
  std::vector<Copy> copies_;
  std::optional<torch_ops::CallScope> call_;
  Workspace workspace_;
};

}  // namespace megafold::apps
