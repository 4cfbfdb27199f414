#include "megafold/core/build_info.h"

#include <gtest/gtest.h>

namespace megafold {
namespace {

TEST(BuildInfo, NamesVersionCommitAndEveryBackend) {
  EXPECT_EQ(Version().substr(0, 2), "0.");
  EXPECT_FALSE(GitCommit().empty());
  EXPECT_FALSE(Compiler().empty());
  ASSERT_EQ(Backends().size(), 3U);
  EXPECT_TRUE(Backends()[0].built) << "the CPU backend is always there";
  for (const BackendInfo& backend : Backends()) {
    EXPECT_FALSE(backend.detail.empty()) << Name(backend.device);
  }
}

}  // namespace
}  // namespace megafold
