// Which operators this build can run on which kind of device.
#pragma once

#include <array>

#include "megafold/core/device.h"

namespace megafold::ops {

enum class Operator { kEvoAttention, kLayerNormLinear, kTransition, kTriangleMultiplication };
inline constexpr std::array kOperators = {Operator::kEvoAttention, Operator::kLayerNormLinear,
                                          Operator::kTransition, Operator::kTriangleMultiplication};

constexpr const char* Name(Operator op) {
  switch (op) {
    case Operator::kEvoAttention: return "evo_attention";
    case Operator::kLayerNormLinear: return "layer_norm_linear";
    case Operator::kTransition: return "transition";
    case Operator::kTriangleMultiplication: return "triangle_multiplication";
  }
  return "unknown";
}

// True when this build has an implementation of the operator for that kind of device. A call may still be refused: for
// a dtype, say.
bool IsImplemented(Operator op, DeviceType device);

}  // namespace megafold::ops
