// Layout of atoms in tokens and windows, and the atom encoder and decoder over them.
#include "model/atom_attention.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "megafold/core/error.h"
#include "model/random.h"
#include "model/row_gather.h"
#include "tests/model/live_parameters.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

using testing::BatchSizes;
using testing::LiveParameters;
using testing::Padded;
using testing::RandomBatch;
using testing::Randomise;
using testing::RelativeError;
using testing::TinyConfig;

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

struct Fixture {
  explicit Fixture(Ops ops, const BatchSizes& sizes = {.batch = 2, .tokens = 19})
      : config(TinyConfig(ops)), features(RandomBatch(sizes, 3)), layout(features, config.atom) {
    const std::int64_t b = layout.batch(), n = layout.tokens();
    s = Normal({b, n, config.c_s}, 4);
    z = Normal({b, n, n, config.c_z}, 5);
    r = Normal({b, 3, layout.atoms(), 3}, 6);
  }
  ModelConfig config;
  Features features;
  AtomLayout layout;
  at::Tensor s, z, r;
};

AtomAttentionEncoder MakeEncoder(const Fixture& f) {
  AtomAttentionEncoder encoder(f.config, f.config.diffusion.c_token, /*noised=*/true);
  Randomise(*encoder, 7);
  return encoder;
}

TEST(RowGather, GradientsAreTheAdjoints) {
  const at::Tensor index = at::tensor({3, 0, 3, 1, 3}, at::kLong);
  const at::Tensor x = Normal({4, 2}, 1).requires_grad_();
  const at::Tensor w = Normal({5, 2}, 2);
  EXPECT_TRUE(at::equal(GatherRows(x, index), x.index_select(0, index)));
  const auto mine = torch::autograd::grad({(GatherRows(x, index) * w).sum()}, {x})[0];
  const auto theirs = torch::autograd::grad({(x.index_select(0, index) * w).sum()}, {x})[0];
  EXPECT_TRUE(at::allclose(mine, theirs));

  const at::Tensor y = w.clone().requires_grad_();
  const at::Tensor sums = SumRows(y, index, 4);
  EXPECT_TRUE(at::allclose(sums, at::zeros({4, 2}).index_add(0, index, w)));
  const auto gradient = torch::autograd::grad({(sums * x.detach()).sum()}, {y})[0];
  EXPECT_TRUE(at::equal(gradient, x.detach().index_select(0, index)));
}

TEST(AtomLayout, WindowsAreCentredAndMasked) {
  const Fixture f(Ops::kBaseline);
  const auto& layout = f.layout;
  const at::Tensor number = at::arange(layout.padded(), at::kFloat)
                                .view({1, 1, -1, 1})
                                .expand({layout.batch(), 1, layout.padded(), 1}) +
                            1;
  const at::Tensor queries = layout.Queries(number), keys = layout.Keys(number);
  EXPECT_TRUE(at::equal(layout.FromQueries(queries), number));
  const std::int64_t reach = (layout.keys() - layout.queries()) / 2;
  for (std::int64_t w = 0; w < layout.windows(); ++w) {
    for (std::int64_t k = 0; k < layout.keys(); ++k) {
      const std::int64_t atom = w * layout.queries() - reach + k;
      const bool inside = atom >= 0 && atom < layout.padded();
      EXPECT_EQ(keys[w][0][k][0].item<float>(), inside ? static_cast<float>(atom + 1) : 0.f);
      EXPECT_EQ(layout.key_mask()[w][0][0][0][k].item<bool>(), inside && atom < layout.atoms());
    }
  }
}

TEST(AtomLayout, MeansAndBroadcastsFollowTheTokens) {
  const Features features = Padded(RandomBatch({.batch = 2, .tokens = 7}, 1), 2);
  const AtomLayout layout(features, TinyConfig(Ops::kBaseline).atom);
  const at::Tensor x = Normal({2, 3, layout.padded(), 5}, 3);
  const at::Tensor mean = layout.MeanOverAtoms(x);
  ASSERT_EQ(mean.sizes(), (at::IntArrayRef{2, 3, layout.tokens(), 5}));
  const at::Tensor token_mask = Get(features, "token_mask");
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < layout.tokens(); ++t) {
      const bool real = token_mask[b][t].item<int>() != 0;
      const auto start = Get(features, "token_atom_start")[b][t].item<std::int64_t>();
      const auto count = Get(features, "token_atom_count")[b][t].item<std::int64_t>();
      const at::Tensor expected = real ? x[b].narrow(1, start, count).mean(1) : at::zeros({3, 5});
      EXPECT_TRUE(at::allclose(mean[b].select(1, t), expected, 1e-5, 1e-6)) << b << " " << t;
    }
  }
  const at::Tensor tokens = Normal({2, 3, layout.tokens(), 5}, 4);
  const at::Tensor atoms = layout.TokensToAtoms(tokens);
  for (std::int64_t a = 0; a < layout.padded(); ++a) {
    const bool real = a < layout.atoms() && Get(features, "atom_mask")[1][a].item<int>() != 0;
    const at::Tensor expected =
        real ? tokens[1].select(1, Get(features, "atom_to_token")[1][a].item<std::int64_t>())
             : at::zeros({3, 5});
    EXPECT_TRUE(at::equal(atoms[1].select(1, a), expected)) << a;
  }
}

TEST(AtomLayout, RefusesOddWindows) {
  AtomConfig config;
  config.window_queries = 5;
  const Features features = RandomBatch({}, 1);
  EXPECT_THROW(AtomLayout(features, config), Error);
}

TEST(AtomAttention, Shapes) {
  const Fixture f(Ops::kFused);
  AtomAttentionEncoder encoder = MakeEncoder(f);
  const AtomContext context = encoder->Prepare(f.features, f.layout, f.s, f.z);
  EXPECT_EQ(context.c.sizes(), (at::IntArrayRef{2, 1, f.layout.padded(), 16}));
  EXPECT_EQ(context.p.sizes(), (at::IntArrayRef{2, f.layout.windows(), 8, 16, 8}));
  const AtomEncoding encoding = encoder->forward(context, f.layout, f.r);
  EXPECT_EQ(encoding.tokens.sizes(), (at::IntArrayRef{2, 3, 19, 32}));
  AtomAttentionDecoder decoder(f.config, 32);
  Randomise(*decoder, 8);
  const at::Tensor update = decoder->forward(encoding.tokens, encoding.q, context, f.layout);
  EXPECT_EQ(update.sizes(), (at::IntArrayRef{2, 3, f.layout.atoms(), 3}));
  EXPECT_TRUE(update.isfinite().all().item<bool>());
  EXPECT_THROW(encoder->forward(context, f.layout), Error);
  EXPECT_THROW(encoder->Prepare(f.features, f.layout), Error);
}

// With one block, an atom's output depends on the atoms in its window's keys and on no other.
TEST(AtomAttention, SeesItsWindowAlone) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    const Fixture f(ops);
    AtomAttentionEncoder encoder = MakeEncoder(f);
    const AtomContext context = encoder->Prepare(f.features, f.layout, f.s, f.z);
    const std::int64_t moved =
        25;  // in the queries of window 3, atoms 24 to 31; windows of 8 with 16 keys
    at::Tensor r = f.r.clone();
    r.select(2, moved).add_(1);
    const at::Tensor before = encoder->forward(context, f.layout, f.r).q;
    const at::Tensor change =
        (encoder->forward(context, f.layout, r).q - before).abs().amax({0, 1, 3});
    for (std::int64_t atom = 0; atom < f.layout.atoms(); ++atom) {
      const std::int64_t first_key = atom / 8 * 8 - 4;
      const bool sees = moved >= first_key && moved < first_key + 16;
      const float difference = change[atom].item<float>();
      EXPECT_TRUE(sees ? difference > 1e-5f : difference == 0) << atom << ": " << difference;
    }
  }
}

TEST(AtomAttention, FusedEqualsBaselineWithGradients) {
  std::vector<at::Tensor> values, gradients;
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    Fixture f(ops);
    f.z.requires_grad_();
    f.r.requires_grad_();
    AtomAttentionEncoder encoder = MakeEncoder(f);
    const AtomContext context = encoder->Prepare(f.features, f.layout, f.s, f.z);
    const at::Tensor tokens = encoder->forward(context, f.layout, f.r).tokens;
    std::vector<at::Tensor> inputs = LiveParameters(*encoder);
    inputs.insert(inputs.end(), {f.z, f.r});
    values.push_back(tokens.detach());
    const at::Tensor loss = (tokens * Normal(tokens.sizes(), 9)).sum();
    for (const at::Tensor& gradient : torch::autograd::grad({loss}, inputs)) {
      EXPECT_GT(gradient.abs().max().item<double>(), 0);
      gradients.push_back(gradient);
    }
  }
  EXPECT_LT(RelativeError(values[1], values[0]), 1e-5);
  const std::size_t count = gradients.size() / 2;
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_LT(RelativeError(gradients[count + i], gradients[i]), 1e-4) << i;
  }
}

TEST(AtomAttention, PaddingChangesNothing) {
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    const ModelConfig config = TinyConfig(ops);
    AtomAttentionEncoder encoder(config, config.c_s, /*noised=*/false);
    Randomise(*encoder, 7);
    const Features features = RandomBatch({.batch = 1, .tokens = 11}, 1);
    const Features padded = Padded(features, 2);
    const auto run = [&](const Features& batch) {
      const AtomLayout layout(batch, config.atom);
      return encoder->forward(encoder->Prepare(batch, layout), layout).tokens;
    };
    const at::Tensor expected = run(features);
    EXPECT_LT(RelativeError(run(padded).narrow(2, 0, 11), expected), 1e-6);
  }
}

}  // namespace
}  // namespace megafold::model
