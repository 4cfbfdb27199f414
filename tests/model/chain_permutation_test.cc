// The truth's equal chains are assigned as suits a prediction.
#include "model/chain_permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "model/alphafold3.h"
#include "model/diffusion_loss.h"
#include "model/random.h"
#include "model/rigid.h"
#include "tests/model/synthetic.h"

namespace megafold::model {
namespace {

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

struct ChainKind {
  std::int64_t entity = 0, copies = 0, tokens = 0;
  bool ligand = false;
};

// Two atoms a token; `chains` in order, of which the copies of one kind follow each other. Every
// copy stands somewhere of its own.
struct Complex {
  std::vector<std::int64_t> first_atom, atoms, sym, copies;
  Features features;

  explicit Complex(const std::vector<ChainKind>& kinds, std::uint64_t seed) {
    std::vector<std::int64_t> asym, entity, copies_of_token, ligand;
    std::int64_t most = 0, chain = 0;
    for (const ChainKind& kind : kinds) {
      for (std::int64_t k = 0; k < kind.copies; ++k, ++chain) {
        first_atom.push_back(2 * static_cast<std::int64_t>(asym.size()));
        atoms.push_back(2 * kind.tokens);
        sym.push_back(k);
        copies.push_back(kind.copies);
        asym.insert(asym.end(), static_cast<std::size_t>(kind.tokens), chain);
        entity.resize(asym.size(), kind.entity);
        copies_of_token.resize(asym.size(), kind.copies);
        ligand.resize(asym.size(), kind.ligand ? 1 : 0);
      }
      most = std::max(most, kind.copies);
    }
    const auto tokens = static_cast<std::int64_t>(asym.size());
    const auto row = [](const std::vector<std::int64_t>& x) {
      return at::tensor(x, at::kInt).unsqueeze(0);
    };
    features["token_mask"] = at::ones({1, tokens}, at::kByte);
    features["asym_id"] = row(asym);
    features["entity_id"] = row(entity);
    features["entity_copies"] = row(copies_of_token);
    features["is_ligand"] = row(ligand);
    features["token_center_atom"] = at::arange(tokens, at::kInt).mul(2).unsqueeze(0);
    features["atom_to_token"] = at::arange(tokens, at::kInt).repeat_interleave(2).unsqueeze(0);
    features["atom_positions"] = Normal({1, 2 * tokens, 3}, seed) * 12;
    features["atom_resolved"] = Normal({1, 2 * tokens}, seed + 1).gt(-1.3).to(at::kByte);
    const at::Tensor of_ligand = row(ligand).repeat_interleave(2, 1).to(at::kByte);
    features["atom_resolved"] = features["atom_resolved"].logical_or(of_ligand).to(at::kByte);
    features["atom_copy_positions"] = at::zeros({1, most, 2 * tokens, 3});
    features["atom_copy_resolved"] = at::zeros({1, most, 2 * tokens}, at::kByte);
    FillCopies();
  }

  at::Tensor Atoms(const char* name, std::size_t chain) {
    return features.at(name)[0].narrow(0, first_atom[chain], atoms[chain]);
  }

  // atom_copy_* from atom_*: chain c and its copies lie at c - sym + k.
  void FillCopies() {
    for (std::size_t c = 0; c < sym.size(); ++c) {
      for (std::int64_t k = 0; k < copies[c]; ++k) {
        const auto other = static_cast<std::size_t>(static_cast<std::int64_t>(c) - sym[c] + k);
        for (const std::string part : {"positions", "resolved"}) {
          features.at("atom_copy_" + part)[0][k]
              .narrow(0, first_atom[c], atoms[c])
              .copy_(Atoms(("atom_" + part).c_str(), other));
        }
      }
    }
  }

  // The same file with two copies under each other's names.
  Complex Swapped(std::size_t a, std::size_t b) const {
    Complex swapped = *this;
    for (auto& [name, tensor] : swapped.features) tensor = tensor.clone();
    for (const char* name : {"atom_positions", "atom_resolved"}) {
      const at::Tensor kept = swapped.Atoms(name, a).clone();
      swapped.Atoms(name, a).copy_(swapped.Atoms(name, b));
      swapped.Atoms(name, b).copy_(kept);
    }
    swapped.FillCopies();
    return swapped;
  }
};

// Three copies, two copies, one chain alone, two ions.
Complex MakeComplex(std::uint64_t seed) {
  return Complex({{.entity = 0, .copies = 3, .tokens = 7},
                  {.entity = 1, .copies = 2, .tokens = 6},
                  {.entity = 2, .copies = 2, .tokens = 1, .ligand = true}},
                 seed);
}

at::Tensor Moved(const at::Tensor& x, std::uint64_t seed) {
  const at::Tensor rotation =
      RandomRotations(1, MakeGenerator(at::kCPU, seed), at::TensorOptions(at::kFloat))[0];
  return at::matmul(x, rotation) + Normal(x.sizes(), seed + 1) * 0.3 + 17;
}

TEST(ChainPermutation, FindsThePermutationOfAPrediction) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const Complex file = MakeComplex(10 * seed);
    // What was predicted is another order of the copies: 0 1 2 -> 2 0 1, 3 4 -> 4 3, 5 6 -> 6 5.
    const Complex wanted = file.Swapped(0, 1).Swapped(0, 2).Swapped(3, 4).Swapped(5, 6);
    const at::Tensor predicted = Moved(wanted.features.at("atom_positions"), seed);
    const Features permuted = PermuteChains(file.features, predicted);
    for (const char* name : {"atom_positions", "atom_resolved"}) {
      EXPECT_TRUE(at::equal(permuted.at(name), wanted.features.at(name)))
          << name << ", seed " << seed;
    }
    EXPECT_FALSE(at::equal(permuted.at("atom_positions"), file.features.at("atom_positions")));
  }
}

TEST(ChainPermutation, TheNamesOfCopiesMeanNothing) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const Complex file = MakeComplex(10 * seed + 3);
    const at::Tensor predicted = Normal({1, 70, 3}, seed) * 12;
    const at::Tensor there = PermuteChains(file.features, predicted).at("atom_positions");
    for (const auto& [a, b] : {std::pair{0, 2}, {1, 2}, {3, 4}, {5, 6}}) {
      const Complex swapped =
          file.Swapped(static_cast<std::size_t>(a), static_cast<std::size_t>(b));
      EXPECT_TRUE(at::equal(PermuteChains(swapped.features, predicted).at("atom_positions"), there))
          << "chains " << a << " and " << b << ", seed " << seed;
    }
  }
}

// Token and atom padding, and an entry without anything to permute beside one with.
TEST(ChainPermutation, LeavesPaddingAndOtherEntriesAlone) {
  const Complex file = MakeComplex(5);
  const Complex wanted = file.Swapped(0, 1);
  Features batch;
  for (const auto& [name, tensor] : file.features) {
    const std::int64_t atom_like = tensor.dim() - (name.ends_with("positions") ? 2 : 1);
    std::vector<std::int64_t> padding(static_cast<std::size_t>(2 * (tensor.dim() - atom_like)), 0);
    padding.back() = 4;
    const at::Tensor padded = at::constant_pad_nd(tensor, padding);
    batch[name] = at::cat({padded, padded});
  }
  batch["entity_copies"][1].fill_(1);
  const at::Tensor predicted =
      at::constant_pad_nd(Moved(wanted.features.at("atom_positions"), 1), {0, 0, 0, 4})
          .repeat({2, 1, 1});
  const Features permuted = PermuteChains(batch, predicted);
  const at::Tensor& positions = permuted.at("atom_positions");
  EXPECT_TRUE(at::equal(positions[0].narrow(0, 0, 70), wanted.features.at("atom_positions")[0]));
  EXPECT_EQ(positions[0].narrow(0, 70, 4).abs().max().item<double>(), 0);
  EXPECT_TRUE(at::equal(positions[1], batch.at("atom_positions")[1]));
}

TEST(ChainPermutation, NeedsAnAnchor) {
  Complex ions({{.entity = 0, .copies = 3, .tokens = 1, .ligand = true}}, 1);
  EXPECT_TRUE(HasChainCopies(ions.features));
  const Features kept = PermuteChains(ions.features, Normal({1, 6, 3}, 2));
  EXPECT_TRUE(at::equal(kept.at("atom_positions"), ions.features.at("atom_positions")));
}

// Through the whole model: the loss of a file does not depend on which copy is called which.
TEST(ChainPermutation, TheLossDoesNotSeeTheNamesOfCopies) {
  ModelConfig config = testing::TinyConfig(Ops::kBaseline);
  Features features = testing::RandomBatch({.batch = 1, .tokens = 8}, 4);  // two chains of 4 tokens
  const std::int64_t half = features.at("atom_mask").size(1) / 2;
  features["atom_resolved"].fill_(1);
  features["is_ligand"].fill_(0);
  features["entity_copies"].fill_(2);
  const auto with_copies = [&](at::Tensor positions) {
    const auto halves = positions.split(half, 1);
    Features file = features;
    file["atom_positions"] = positions;
    file["atom_copy_positions"] =
        at::stack({halves[0].repeat({1, 2, 1}), halves[1].repeat({1, 2, 1})}, 1);
    file["atom_copy_resolved"] = at::ones({1, 2, 2 * half}, at::kByte);
    return file;
  };
  const at::Tensor positions = features.at("atom_positions");
  const Features file = with_copies(positions);
  const Features swapped = with_copies(positions.roll(half, 1));
  for (const int steps : {0, 3}) {
    config.permutation_steps = steps;
    AlphaFold3 model(config);
    testing::Randomise(*model, 11);
    const double a = model->Loss(file, 5).total.item<double>();
    const double b = model->Loss(swapped, 5).total.item<double>();
    if (steps == 0) {
      EXPECT_GT(std::abs(a - b), 1e-3 * std::abs(a));
    } else {
      EXPECT_NEAR(a, b, 1e-6 * std::abs(a));
    }
  }
}

}  // namespace
}  // namespace megafold::model
