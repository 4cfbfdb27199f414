// The trunk and its modules: padding, templates, recycling, encodings.
#include "model/trunk.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/function.h>

#include <set>
#include <string>
#include <vector>

#include "model/distogram.h"
#include "model/encodings.h"
#include "model/random.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

using testing::Padded;
using testing::RandomBatch;
using testing::RelativeError;
using testing::TinyConfig;

Trunk RandomTrunk(const ModelConfig& config) {
  Trunk trunk(config);
  testing::Randomise(*trunk, 7);
  return trunk;
}
TrunkOutput RunTrunk(const ModelConfig& config, const Features& features, std::int64_t cycles = 2) {
  Trunk trunk = RandomTrunk(config);
  return trunk(features, AtomLayout(features, config.atom), cycles, at::Generator());
}

TEST(TrunkTest, PaddingChangesNothing) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    const ModelConfig config = TinyConfig(ops);
    const Features features = RandomBatch({.batch = 2}, 1);
    const Features padded = Padded(features, 2);
    const TrunkOutput a = RunTrunk(config, features), b = RunTrunk(config, padded);
    const std::int64_t n = a.s.size(1);
    ASSERT_GT(b.s.size(1), n);
    EXPECT_LT(RelativeError(b.s_inputs.narrow(1, 0, n), a.s_inputs), 1e-5);
    EXPECT_LT(RelativeError(b.s.narrow(1, 0, n), a.s), 1e-4);
    const at::Tensor z = b.z.narrow(1, 0, n).narrow(2, 0, n);
    EXPECT_LT(RelativeError(z, a.z), 1e-4);
    DistogramHead head(config);
    testing::Randomise(*head, 3);
    EXPECT_NEAR(DistogramLoss(head(b.z), padded, config.distogram).item<double>(),
                DistogramLoss(head(a.z), features, config.distogram).item<double>(), 1e-4);
  }
}

TEST(TrunkTest, EntriesOfABatchDoNotMix) {
  const ModelConfig config = TinyConfig(Ops::kFused);
  const Features both = RandomBatch({.batch = 2}, 1);
  Features second;
  for (const auto& [name, tensor] : both) second[name] = tensor.narrow(0, 1, 1).contiguous();
  const TrunkOutput a = RunTrunk(config, both), b = RunTrunk(config, second);
  EXPECT_LT(RelativeError(a.s.narrow(0, 1, 1), b.s), 1e-4);
  EXPECT_LT(RelativeError(a.z.narrow(0, 1, 1), b.z), 1e-4);
}

TEST(TrunkTest, GradientsFlowThroughTheLastCycleAlone) {
  ModelConfig config = TinyConfig(Ops::kBaseline);
  config.checkpointing = false;
  const Features features = RandomBatch({}, 1);
  const AtomLayout layout(features, config.atom);
  Trunk trunk = RandomTrunk(config);
  const TrunkOutput output = trunk(features, layout, 3, at::Generator());
  EXPECT_GT(RelativeError(output.z, trunk(features, layout, 2, at::Generator()).z), 1e-3);
  output.z.square().mean().backward();
  EXPECT_TRUE(trunk->named_parameters()["recycle_z.norm.weight"].grad().defined());
  // The blocks that a gradient passes are those of one cycle, not of three.
  std::int64_t attentions = 0;
  std::vector<torch::autograd::Node*> todo{output.z.grad_fn().get()};
  std::set<torch::autograd::Node*> seen;
  while (!todo.empty()) {
    torch::autograd::Node* node = todo.back();
    todo.pop_back();
    if (node == nullptr || !seen.insert(node).second) continue;
    attentions += node->name().find("Softmax") != std::string::npos ? 1 : 0;
    for (const auto& edge : node->next_edges()) todo.push_back(edge.function.get());
  }
  // Two triangle attentions in each pair stack (single attention is not on the way to z), one
  // averaging in each MSA block but the last, the atoms' attention.
  const std::int64_t stacks =
      config.pairformer.blocks + config.msa.blocks + config.templates.blocks;
  EXPECT_EQ(attentions, 2 * stacks + (config.msa.blocks - 1) + config.atom.blocks);
}

TEST(TemplateEmbedderTest, NoTemplateAddsNothing) {
  const ModelConfig config = TinyConfig(Ops::kFused);
  TemplateEmbedder embedder(config);
  testing::Randomise(*embedder, 7);
  const at::Tensor z = at::randn({2, 9, 9, config.c_z}, MakeGenerator(at::kCPU, 1), at::kFloat);
  const at::Tensor mask = at::ones({2, 9, 9}, at::kBool);
  const Features none = RandomBatch({.batch = 2, .templates = 0}, 1);
  EXPECT_EQ(embedder(none, z, mask, at::Generator()).abs().max().item<double>(), 0);
  Features empty = RandomBatch({.batch = 2, .templates = 2}, 1);
  const at::Tensor with = embedder(empty, z, mask, at::Generator());
  EXPECT_GT(with.abs().max().item<double>(), 0.01);
  empty["template_backbone_mask"].zero_();
  empty["template_pseudo_beta_mask"].zero_();
  EXPECT_EQ(embedder(empty, z, mask, at::Generator()).abs().max().item<double>(), 0);
}

TEST(TemplateEmbedderTest, FeaturesOfAKnownTemplate) {
  Features f = RandomBatch({.tokens = 4, .templates = 1}, 1);
  f["template_backbone_mask"].fill_(1);
  f["template_pseudo_beta_mask"].fill_(1);
  // Token 0: CA at the origin, C on x, N in the xy plane. Token 1: CA 5 Angstrom along y.
  at::Tensor backbone = f["template_backbone"][0][0];
  backbone[0] = at::tensor({1.0F, 1.0F, 0.0F, 0.0F, 0.0F, 0.0F, 1.5F, 0.0F, 0.0F}).view({3, 3});
  backbone[1][1] = at::tensor({0.0F, 5.0F, 0.0F});
  f["template_pseudo_beta"][0][0][0] = at::tensor({0.0F, 0.0F, 0.0F});
  f["template_pseudo_beta"][0][0][1] = at::tensor({0.0F, 0.0F, 6.0F});
  const at::Tensor a = TemplateFeatures(f)[0][0];
  const at::Tensor pair = a[0][1];
  ASSERT_EQ(pair.size(0), 108);
  EXPECT_EQ(pair.narrow(0, 0, 39).argmax().item<std::int64_t>(), 2);  // 5.75 to 7.0
  EXPECT_EQ(pair.narrow(0, 0, 39).sum().item<double>(), 1);
  EXPECT_EQ(pair[39].item<double>(), 1);
  EXPECT_LT(RelativeError(pair.narrow(0, 40, 3), at::tensor({0.0F, 1.0F, 0.0F})), 1e-5);
  EXPECT_EQ(pair[43].item<double>(), 1);
  EXPECT_EQ(pair[44 + f["template_restype"][0][0][0].item<int>()].item<double>(), 1);
  EXPECT_EQ(pair[76 + f["template_restype"][0][0][1].item<int>()].item<double>(), 1);
  EXPECT_EQ(a[0][2].narrow(0, 0, 44).abs().max().item<double>(), 0) << "tokens of two chains";
}

TEST(DistogramTest, LossIsTheCrossEntropyOfTheTrueBin) {
  const DistogramConfig config{.bins = 4, .min = 2, .max = 10};  // edges 4, 6, 8
  Features f = RandomBatch({.tokens = 3}, 1);
  f["atom_resolved"].fill_(1);
  f["atom_positions"].zero_();
  f["token_rep_atom"] = at::tensor({0, 1, 3}, at::kInt).view({1, 3});
  f["atom_positions"][0][1][0] = 5;    // 5 from token 0: bin 1
  f["atom_positions"][0][3][0] = -20;  // 20 and 25 away: bin 3; a token from itself: bin 0
  const at::Tensor logits = at::randn({1, 3, 3, 4}, MakeGenerator(at::kCPU, 2), at::kFloat);
  const at::Tensor bins = at::tensor({0, 1, 3, 1, 0, 3, 3, 3, 0}, at::kLong);
  const double expected = at::cross_entropy_loss(logits.view({9, 4}), bins).item<double>();
  EXPECT_NEAR(DistogramLoss(logits, f, config).item<double>(), expected, 1e-5);
  f["atom_resolved"][0][3] = 0;  // token 2 leaves: four pairs remain
  const at::Tensor kept = logits[0].narrow(0, 0, 2).narrow(1, 0, 2).reshape({4, 4});
  EXPECT_NEAR(DistogramLoss(logits, f, config).item<double>(),
              at::cross_entropy_loss(kept, at::tensor({0, 1, 1, 0}, at::kLong)).item<double>(),
              1e-5);
  f["atom_resolved"].zero_();
  EXPECT_EQ(DistogramLoss(logits, f, config).item<double>(), 0);
}

TEST(EncodingsTest, OneHotOfCompactTypes) {
  const at::Tensor index = at::tensor({0, 31, 200}, at::kByte);
  const at::Tensor encoded = OneHot(index, kResidueClasses);
  EXPECT_EQ(encoded[0][0].item<double>(), 1);
  EXPECT_EQ(encoded[1][31].item<double>(), 1);
  EXPECT_EQ(encoded.sum().item<double>(), 2);
}

}  // namespace
}  // namespace megafold::model
