// How a backend offers an operator: a name and two triples of functions (can you, how much scratch, do it).
//
// Each backend returns its implementations of an operator, fastest first, from a plain function in <backend>_backend.h.
// src/ops concatenates those lists in the order the architecture gives; nothing registers itself at load time.
#pragma once

#include <cstddef>
#include <span>

#include "megafold/core/device.h"
#include "megafold/core/support.h"
#include "megafold/core/workspace.h"
#include "megafold/ops/evo_attention.h"
#include "megafold/ops/layer_norm_linear.h"
#include "megafold/ops/transition.h"
#include "megafold/ops/triangle_multiplication.h"

namespace megafold {

// One direction of an operator. Arguments have passed the operator's own checks before any of these is called, so
// `supports` only says what this implementation cannot do. All three null: the implementation lacks this direction.
template <typename Args>
struct Kernel {
  Support (*supports)(const Args&);
  std::size_t (*workspace)(const Args&);
  void (*run)(const Args&, Workspace, Stream);
};

template <typename ForwardArgs, typename BackwardArgs>
struct Implementation {
  const char* name;  // "<backend> <path>", e.g. "cpu simd", "cuda sm90a"
  DeviceType device;
  Kernel<ForwardArgs> forward;
  Kernel<BackwardArgs> backward;
  // A configuration of another implementation under a name of its own, such as "cuda sm80 window": taken only where a
  // tuned choice (megafold/ops/tuning.h) names it, and measured by `megafold tune`.
  bool variant = false;
};

using EvoAttentionImplementation =
    Implementation<ops::EvoAttentionForwardArgs, ops::EvoAttentionBackwardArgs>;
using LayerNormLinearImplementation =
    Implementation<ops::LayerNormLinearForwardArgs, ops::LayerNormLinearBackwardArgs>;
using TransitionImplementation =
    Implementation<ops::TransitionForwardArgs, ops::TransitionBackwardArgs>;
using TriangleMultiplicationImplementation =
    Implementation<ops::TriangleMultiplicationForwardArgs, ops::TriangleMultiplicationBackwardArgs>;

// For a kernel that needs no scratch.
template <typename Args>
std::size_t NoWorkspace(const Args&) {
  return 0;
}

}  // namespace megafold
