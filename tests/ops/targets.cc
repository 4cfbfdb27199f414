#include "tests/ops/targets.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

namespace megafold::test {
namespace {

void Choose(std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace

void ForEachTarget(const std::function<void()>& body) {
  const std::int64_t supported = hwy::SupportedTargets();
  for (const std::int64_t target : {HWY_STATIC_TARGET, HWY_AVX2, HWY_AVX3}) {
    if ((supported & target) == 0) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    Choose(target);
    body();
  }
  Choose(0);  // no override
}

}  // namespace megafold::test
