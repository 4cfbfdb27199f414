// Rigid motions and the diffusion losses.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "model/diffusion_loss.h"
#include "model/random.h"
#include "model/rigid.h"
#include "model/smooth_lddt.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

at::Tensor Rotations(std::int64_t count, std::uint64_t seed) {
  return RandomRotations(count, MakeGenerator(at::kCPU, seed), at::TensorOptions(at::kFloat));
}

at::Tensor Rotated(const at::Tensor& x, const at::Tensor& rotation) {
  return at::matmul(x, rotation.transpose(-1, -2));
}

double Largest(const at::Tensor& x) { return x.abs().max().item<double>(); }

TEST(RandomRotations, AreProperAndUniform) {
  const at::Tensor rotations = Rotations(4000, 1).to(at::kDouble);
  EXPECT_LT(Largest(at::matmul(rotations, rotations.transpose(1, 2)) - at::eye(3, at::kDouble)),
            1e-5);
  EXPECT_LT(Largest(at::det(rotations) - 1), 1e-5);
  // Every entry of a uniform rotation has mean 0 and variance 1/3.
  EXPECT_LT(Largest(rotations.mean(0)), 0.05);
  EXPECT_LT(Largest(rotations.square().mean(0) - 1.0 / 3), 0.05);
}

TEST(CentreRandomAugmentation, CentresAndKeepsDistances) {
  const at::Tensor x = Normal({2, 3, 10, 3}, 1) * 5 + 40;
  at::Tensor mask = at::ones({2, 10}, at::kBool);
  mask[1].narrow(0, 7, 3).fill_(false);
  const at::Tensor moved = CentreRandomAugmentation(x, mask, 0, MakeGenerator(at::kCPU, 2));
  EXPECT_LT(Largest(moved[0].mean(1)), 1e-4);
  EXPECT_LT(Largest(moved[1].narrow(1, 0, 7).mean(1)), 1e-4);
  EXPECT_EQ(Largest(moved[1].narrow(1, 7, 3)), 0);
  const auto distances = [](const at::Tensor& y) {
    return (y.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt();
  };
  EXPECT_LT(Largest(distances(moved[0]) - distances(x[0])), 1e-3);
  EXPECT_GT(Largest(moved[0][0] - moved[0][1]), 1);
}

TEST(WeightedRigidAlign, RecoversARotation) {
  const at::Tensor x = Normal({2, 4, 12, 3}, 1) * 10 + 30;
  const at::Tensor target =
      Rotated(x, Rotations(8, 2).view({2, 4, 3, 3})) + Normal({2, 4, 1, 3}, 3);
  const at::Tensor weights = Normal({2, 12}, 4).abs();
  EXPECT_LT(Largest(WeightedRigidAlign(x, target, weights) - target), 1e-4);
}

TEST(WeightedRigidAlign, IgnoresWhatHasNoWeight) {
  const at::Tensor x = Normal({1, 1, 12, 3}, 1) * 10;
  at::Tensor target = Rotated(x, Rotations(1, 2)).clone();
  at::Tensor weights = at::ones({1, 12});
  weights.narrow(1, 8, 4).fill_(0);
  target.narrow(2, 8, 4).add_(100);
  const at::Tensor aligned = WeightedRigidAlign(x, target, weights);
  EXPECT_LT(Largest((aligned - target).narrow(2, 0, 8)), 1e-4);
}

TEST(WeightedRigidAlign, NeverReflects) {
  const at::Tensor x = Normal({1, 1, 12, 3}, 1) * 10;
  const at::Tensor mirrored = x * at::tensor({-1.f, 1.f, 1.f});
  const at::Tensor aligned = WeightedRigidAlign(x, mirrored, at::ones({1, 12}));
  EXPECT_GT(Largest(aligned - mirrored), 1);
  const auto volume = [](const at::Tensor& y) {
    return at::det(y[0][0].narrow(0, 0, 3) - y[0][0][3]).item<double>();
  };
  EXPECT_NEAR(volume(aligned) / volume(x), 1, 1e-3);
  // It is the best rotation: no small turn away from it is better.
  const double best = (aligned - mirrored).square().sum().item<double>();
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const at::Tensor axis = Normal({3}, 100 + seed) * 0.05;
    at::Tensor generator = at::zeros({3, 3});
    generator[0][1] = -axis[2], generator[1][0] = axis[2];
    generator[0][2] = axis[1], generator[2][0] = -axis[1];
    generator[1][2] = -axis[0], generator[2][1] = axis[0];
    const at::Tensor centre = aligned.mean(2, true);
    const at::Tensor turned = Rotated(aligned - centre, at::matrix_exp(generator)) + centre;
    EXPECT_GE((turned - mirrored).square().sum().item<double>(), best);
  }
}

TEST(WeightedRigidAlign, SurvivesDegeneratePoints) {
  const at::Tensor line = Normal({1, 1, 6, 1}, 1) * at::tensor({1.f, 2.f, -1.f});
  const at::Tensor turned = Rotated(line, Rotations(1, 2)) + 3;
  EXPECT_LT(Largest(WeightedRigidAlign(line, turned, at::ones({1, 6})) - turned), 1e-4);
  const at::Tensor x = Normal({1, 1, 6, 3}, 3);
  at::Tensor one = at::zeros({1, 6});
  one[0][2] = 1;
  const at::Tensor single = WeightedRigidAlign(x, turned, one);
  EXPECT_LT(Largest((single - turned).select(2, 2)), 1e-5);
  EXPECT_TRUE(single.isfinite().all().item<bool>());
  EXPECT_TRUE(at::equal(WeightedRigidAlign(x, turned, at::zeros({1, 6})), x));
  const at::Tensor bad = at::full({1, 1, 6, 3}, NAN);
  EXPECT_FALSE(WeightedRigidAlign(x, bad, at::ones({1, 6})).isfinite().any().item<bool>());
}

// Pairs by hand, from the formula as Algorithm 27 writes it.
at::Tensor PlainLddt(const at::Tensor& x, const at::Tensor& truth, const at::Tensor& nucleotide,
                     const at::Tensor& exists) {
  const auto distances = [](const at::Tensor& y) {
    return ((y.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) + 1e-20).sqrt();
  };
  const at::Tensor wanted = distances(truth);
  const at::Tensor error = (distances(x) - wanted.unsqueeze(1)).abs();
  const at::Tensor score = (at::sigmoid(0.5 - error) + at::sigmoid(1 - error) +
                            at::sigmoid(2 - error) + at::sigmoid(4 - error)) /
                           4;
  const at::Tensor radius = at::where(nucleotide, 30.0, 15.0).unsqueeze(-1);
  const at::Tensor counts = (wanted.lt(radius) & exists.unsqueeze(-1) & exists.unsqueeze(-2) &
                             at::eye(truth.size(1)).eq(0))
                                .to(x.scalar_type())
                                .unsqueeze(1);
  return 1 - (counts * score).sum({2, 3}) / counts.sum({2, 3});
}

struct LddtCase {
  at::Tensor truth = Normal({2, 17, 3}, 1) * 12;
  at::Tensor x = (truth.unsqueeze(1) + Normal({2, 5, 17, 3}, 2)).to(at::kDouble);
  at::Tensor nucleotide = Normal({2, 17}, 3) > 0;
  at::Tensor exists = Normal({2, 17}, 4) > -1;
};

TEST(SmoothLddt, IsTheFormulaInValueAndGradient) {
  LddtCase c;
  const at::Tensor truth = c.truth.to(at::kDouble);
  c.x.requires_grad_();
  const at::Tensor w = Normal({2, 5}, 5).to(at::kDouble);
  const at::Tensor plain = PlainLddt(c.x, truth, c.nucleotide, c.exists);
  const at::Tensor expected = torch::autograd::grad({(plain * w).sum()}, {c.x})[0];
  for (const std::int64_t block : {std::int64_t{1}, std::int64_t{2 * 5 * 17 * 3}, kLddtBlock}) {
    const at::Tensor loss = SmoothLddtLoss(c.x, truth, c.nucleotide, c.exists, block);
    const at::Tensor gradient = torch::autograd::grad({(loss * w).sum()}, {c.x})[0];
    EXPECT_LT(Largest(loss - plain), 1e-10) << block;
    EXPECT_LT(Largest(gradient - expected), 1e-10) << block;
  }
}

TEST(SmoothLddt, KnownValues) {
  const at::Tensor truth =
      at::tensor({0.f, 0.f, 0.f, 10.f, 0.f, 0.f, 30.f, 0.f, 0.f}).view({1, 3, 3});
  const at::Tensor yes = at::ones({1, 3}, at::kBool), no = at::zeros({1, 3}, at::kBool);
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto score = [&](double error) {
    return (sigmoid(0.5 - error) + sigmoid(1 - error) + sigmoid(2 - error) + sigmoid(4 - error)) /
           4;
  };
  // Perfect: 1 - score(0), whatever the motion.
  const at::Tensor same = Rotated(truth, Rotations(1, 1)).unsqueeze(1) + 5;
  EXPECT_NEAR(SmoothLddtLoss(same, truth, no, yes).item<double>(), 1 - score(0), 1e-6);
  // Atoms 1 and 2 at a wrong distance of 23: of the two ordered pairs within 15 none, within 30
  // both, have it.
  at::Tensor x = truth.unsqueeze(1).clone();
  x[0][0][2][0] = 33;
  EXPECT_NEAR(SmoothLddtLoss(x, truth, no, yes).item<double>(), 1 - score(0), 1e-6);
  EXPECT_NEAR(SmoothLddtLoss(x, truth, yes, yes).item<double>(), 1 - (score(0) + score(3)) / 2,
              1e-6);
  EXPECT_EQ(SmoothLddtLoss(x, truth, yes, no).item<double>(), 0);
  // Two predicted atoms in one place: a gradient, and a finite one.
  at::Tensor together = at::zeros({1, 1, 3, 3}).requires_grad_();
  SmoothLddtLoss(together, truth, yes, yes).sum().backward();
  EXPECT_TRUE(together.grad().isfinite().all().item<bool>());
}

struct LossCase {
  ModelConfig config = testing::TinyConfig(Ops::kBaseline);
  Features features = testing::RandomBatch({.batch = 2, .tokens = 9}, 1);
  std::int64_t atoms = Get(features, "atom_mask").size(1);
  at::Tensor x = Normal({2, 4, atoms, 3}, 2) * 6;
  at::Tensor sigma = Normal({2, 4}, 3).exp() * 4;
  DiffusionLosses Losses(const Features& batch, const at::Tensor& positions) const {
    return DiffusionLoss(positions, sigma, 16, DiffusionTruth(batch, config.loss), config.loss);
  }
};

TEST(DiffusionLoss, DoesNotSeeTheFrameOfTheTruth) {
  LossCase c;
  Features moved = c.features;
  moved["atom_positions"] = Rotated(Get(moved, "atom_positions"), Rotations(1, 4)) + 20;
  const auto a = c.Losses(c.features, c.x), b = c.Losses(moved, c.x);
  EXPECT_NEAR(a.total.item<double>() / b.total.item<double>(), 1, 1e-4);
  const DiffusionTruth truth(c.features, c.config.loss);
  const at::Tensor perfect =
      Rotated(truth.positions, Rotations(2, 5)).unsqueeze(1).expand_as(c.x) + 3;
  EXPECT_LT(MseLoss(perfect, truth).max().item<double>(), 1e-6);
  EXPECT_LT(BondLoss(perfect, truth).max().item<double>(), 1e-6);
}

// The hand of a fold is in the squared error alone: no rotation lays a mirror image onto the truth.
TEST(DiffusionLoss, AMirrorImageIsFarFromTheTruth) {
  LossCase c;
  const DiffusionTruth truth(c.features, c.config.loss);
  const at::Tensor right =
      Rotated(truth.positions, Rotations(2, 5)).unsqueeze(1).expand_as(c.x) + 3;
  const auto a = c.Losses(c.features, right), b = c.Losses(c.features, right * -1);
  EXPECT_NEAR(a.smooth_lddt.item<double>(), b.smooth_lddt.item<double>(), 1e-5);
  EXPECT_GT(b.mse.item<double>(), 1e4 * a.mse.item<double>());
  EXPECT_GT(MseLoss(right * -1, truth).min().item<double>(), 1);
}

TEST(DiffusionLoss, WeighsTypesAndSkipsUnresolved) {
  LossCase c;
  const DiffusionTruth truth(c.features, c.config.loss);
  const at::Tensor types = Get(c.features, "is_dna") * 5 + Get(c.features, "is_rna") * 5 +
                           Get(c.features, "is_ligand") * 10 + 1;
  const at::Tensor of_atom = types.gather(1, Get(c.features, "atom_to_token").to(at::kLong));
  EXPECT_TRUE(at::equal(truth.weights, of_atom.to(at::kFloat) * Get(c.features, "atom_resolved")));

  Features junk = c.features;
  const at::Tensor unresolved = Get(junk, "atom_resolved").eq(0).unsqueeze(-1);
  ASSERT_TRUE(unresolved.any().item<bool>());
  junk["atom_positions"] = Get(junk, "atom_positions").masked_fill(unresolved, 1e3);
  EXPECT_TRUE(at::equal(c.Losses(junk, c.x).total, c.Losses(c.features, c.x).total));
}

TEST(DiffusionLoss, PaddingChangesNothing) {
  LossCase c;
  const Features padded = testing::Padded(c.features, 6);
  const std::int64_t more = Get(padded, "atom_mask").size(1) - c.atoms;
  const at::Tensor x = at::cat({c.x, Normal({2, 4, more, 3}, 7)}, 2);
  const auto a = c.Losses(c.features, c.x), b = c.Losses(padded, x);
  EXPECT_NEAR(a.mse.item<double>() / b.mse.item<double>(), 1, 1e-5);
  EXPECT_NEAR(a.bond.item<double>() / b.bond.item<double>(), 1, 1e-5);
  EXPECT_NEAR(a.smooth_lddt.item<double>() / b.smooth_lddt.item<double>(), 1, 1e-5);
}

TEST(DiffusionLoss, BondsByHand) {
  LossCase c;
  c.features["bond_atoms"] = at::tensor({0, 1, 2, 3}, at::kInt).view({1, 2, 2}).repeat({2, 1, 1});
  c.features["bond_mask"] = at::tensor({1, 0}, at::kByte).view({1, 2}).repeat({2, 1});
  c.features["atom_resolved"] = at::ones({2, c.atoms}, at::kByte);
  const DiffusionTruth truth(c.features, c.config.loss);
  const auto length = [](const at::Tensor& y) { return (y[0] - y[1]).norm().item<double>(); };
  const at::Tensor loss = BondLoss(c.x, truth);
  for (int s = 0; s < 4; ++s) {
    const double expected = std::pow(length(c.x[1][s]) - length(truth.positions[1]), 2);
    EXPECT_NEAR(loss[1][s].item<double>(), expected, 1e-3 * (1 + expected));
  }
  c.features["bond_atoms"] = at::zeros({2, 0, 2}, at::kInt);
  c.features["bond_mask"] = at::zeros({2, 0}, at::kByte);
  EXPECT_EQ(BondLoss(c.x, DiffusionTruth(c.features, c.config.loss)).abs().sum().item<double>(), 0);
}

TEST(DiffusionLoss, AnEntryWithoutCoordinatesIsZeroAndFinite) {
  LossCase c;
  c.features["atom_resolved"] = at::zeros({2, c.atoms}, at::kByte);
  at::Tensor x = c.x.clone().requires_grad_();
  const DiffusionLosses losses = c.Losses(c.features, x);
  EXPECT_EQ(losses.total.item<double>(), 0);
  losses.total.backward();
  EXPECT_EQ(Largest(x.grad()), 0);
}

}  // namespace
}  // namespace megafold::model
