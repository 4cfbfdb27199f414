// Writes what tests/parity/diffusion.py compares: random inputs, parameters and this library's
// results, as .npy files.
//   model_diffusion_dump FOLDER
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdio>
#include <string>

#include "model/atom_layout.h"
#include "model/diffusion_loss.h"
#include "model/diffusion_transformer.h"
#include "model/random.h"
#include "model/rigid.h"
#include "model/smooth_lddt.h"
#include "tests/model/synthetic.h"
#include "tests/parity/npy_folder.h"

namespace megafold::model {
namespace {

using testing::NpyFolder;
using testing::RandomBatch;
using testing::Randomise;

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

void DumpLosses(const NpyFolder& folder) {
  const Features features = RandomBatch({.batch = 1, .tokens = 60}, 1);
  const LossConfig config;
  const DiffusionTruth truth(features, config);
  const std::int64_t atoms = truth.positions.size(1);
  const at::Tensor rotations =
      RandomRotations(5, MakeGenerator(at::kCPU, 2), at::TensorOptions(at::kFloat));
  at::Tensor x = at::matmul(truth.positions.unsqueeze(1), rotations.unsqueeze(0)) +
                 Normal({1, 5, atoms, 3}, 3) * 2 + 7;
  x.requires_grad_();
  folder.Write("x", x);
  folder.Write("truth", truth.positions);
  folder.Write("exists", truth.exists);
  folder.Write("weights", truth.weights);
  folder.Write("nucleotide", truth.nucleotide);
  folder.Write("bonds", truth.bonds);
  folder.Write("bond_exists", truth.bond_exists);
  const at::Tensor aligned =
      WeightedRigidAlign(truth.positions.unsqueeze(1).expand_as(x), x, truth.weights);
  folder.Write("aligned", aligned);
  const auto dump = [&](const std::string& name, const at::Tensor& loss) {
    folder.Write(name, loss);
    folder.Write(name + "_grad", torch::autograd::grad({loss.sum()}, {x})[0]);
  };
  dump("mse", MseLoss(x, truth));
  dump("bond", BondLoss(x, truth));
  dump("smooth_lddt", SmoothLddtLoss(x, truth.positions, truth.nucleotide, truth.exists));
}

// The gradient of a random projection of `out` with respect to `a` stands for the backward pass.
void DumpTransformer(const NpyFolder& folder, const std::string& name,
                     const DiffusionTransformer& transformer, const at::Tensor& a,
                     const at::Tensor& s, const at::Tensor& z, const at::Tensor& out) {
  const at::Tensor cotangent = Normal(out.sizes(), 99);
  folder.Write(name + ".a", a);
  folder.Write(name + ".s", s);
  folder.Write(name + ".z", z);
  folder.Write(name + ".out", out);
  folder.Write(name + ".cotangent", cotangent);
  folder.Write(name + ".a_grad", torch::autograd::grad({(out * cotangent).sum()}, {a})[0]);
  for (const auto& item : transformer->named_parameters()) {
    folder.Write(name + ".p." + item.key(), item.value());
  }
}

void DumpTransformers(const NpyFolder& folder, Ops ops) {
  AtomConfig config;  // the paper's windows: 32 queries, 128 keys
  const Features features = RandomBatch({.batch = 1, .tokens = 101}, 4);
  const AtomLayout layout(features, config);
  const std::string suffix = ops == Ops::kFused ? "_fused" : "_baseline";

  DiffusionTransformer tokens(
      ops, DiffusionTransformerOptions{.c_a = 96, .c_s = 48, .c_z = 32, .heads = 4, .blocks = 2});
  Randomise(*tokens, 5);
  const at::Tensor a = Normal({1, 3, 101, 96}, 6).requires_grad_();
  const at::Tensor s = Normal({1, 3, 101, 48}, 7), z = Normal({1, 101, 101, 32}, 8);
  DumpTransformer(folder, "tokens" + suffix, tokens, a, s, z, tokens->forward(a, s, z, layout));

  DiffusionTransformer atoms(
      ops, DiffusionTransformerOptions{.c_a = 64, .c_s = 64, .c_z = 16, .heads = 4, .blocks = 3});
  Randomise(*atoms, 9);
  const at::Tensor q = Normal({1, 2, layout.padded(), 64}, 10).requires_grad_();
  const at::Tensor c = Normal({1, 1, layout.padded(), 64}, 11);
  const at::Tensor p = Normal({1, layout.windows(), 32, 128, 16}, 12);
  folder.Write("atoms" + suffix + ".count", at::full({1}, layout.atoms()));
  DumpTransformer(folder, "atoms" + suffix, atoms, q, c, p, atoms->ForwardWindows(q, c, p, layout));
}

}  // namespace
}  // namespace megafold::model

int main(int argc, char** argv) {
  using namespace megafold::model;
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  try {
    const NpyFolder folder(argv[1]);
    DumpLosses(folder);
    for (const Ops ops : {Ops::kBaseline, Ops::kFused}) DumpTransformers(folder, ops);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
