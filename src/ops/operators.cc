#include "megafold/ops/operators.h"

#include <algorithm>
#include <span>

#include "ops/backends.h"

namespace megafold::ops {
namespace {

template <typename Impl>
bool AnyFor(DeviceType device) {
  const auto lists = Backends<Impl>();
  return std::any_of(lists.begin(), lists.end(), [&](std::span<const Impl> list) {
    return std::any_of(list.begin(), list.end(),
                       [&](const Impl& impl) { return impl.device == device; });
  });
}

}  // namespace

bool IsImplemented(Operator op, DeviceType device) {
  switch (op) {
    case Operator::kEvoAttention: return AnyFor<EvoAttentionImplementation>(device);
    case Operator::kLayerNormLinear: return AnyFor<LayerNormLinearImplementation>(device);
    case Operator::kTransition: return AnyFor<TransitionImplementation>(device);
    case Operator::kTriangleMultiplication:
      return AnyFor<TriangleMultiplicationImplementation>(device);
  }
  return false;
}

}  // namespace megafold::ops
