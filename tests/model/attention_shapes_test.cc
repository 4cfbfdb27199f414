#include "model/attention_shapes.h"

#include <gtest/gtest.h>

#include "megafold/core/error.h"

namespace megafold::model {
namespace {

std::string Text(const AttentionShape& s) {
  return StrCat(s.use, ": ", s.batch, " ", s.rows, " ", s.queries, "x", s.keys, " ", s.heads, " ",
                s.dim);
}

TEST(AttentionShapes, AreThePapersForThePapersConfiguration) {
  std::vector<std::string> lines;
  for (const AttentionShape& shape :
       AttentionShapes(ModelConfig(), {.batch = 1, .tokens = 384, .atoms = 3456, .templates = 4})) {
    lines.push_back(Text(shape));
  }
  EXPECT_EQ(lines,
            (std::vector<std::string>{"triangle attention: 1 384 384x384 4 32",
                                      "templates' triangle attention: 4 384 384x384 4 16",
                                      "single attention: 1 1 384x384 16 24",
                                      "diffusion transformer: 1 48 384x384 16 48",
                                      "input embedder's atom windows: 108 1 32x128 4 32",
                                      "diffusion module's atom windows: 108 48 32x128 4 32"}));
}

TEST(AttentionShapes, EqualOnesAreOne) {
  ModelConfig config;
  config.diffusion.samples = 1;
  config.diffusion.c_token = config.c_s;
  const auto shapes =
      AttentionShapes(config, {.batch = 2, .tokens = 10, .atoms = 33, .templates = 0});
  ASSERT_EQ(shapes.size(), 3U);
  EXPECT_EQ(Text(shapes[1]), "single attention, diffusion transformer: 2 1 10x10 16 24");
  EXPECT_EQ(shapes[2].batch, 4) << "33 atoms are two windows of each of two entries";
}

TEST(AttentionShapes, HeadsMustDivideTheWidth) {
  ModelConfig config;
  config.pairformer.single_heads = 7;
  EXPECT_THROW(AttentionShapes(config, {.batch = 1, .tokens = 4, .atoms = 4, .templates = 1}),
               Error);
}

}  // namespace
}  // namespace megafold::model
