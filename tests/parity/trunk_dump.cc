// Writes what tests/parity/trunk.py compares: random inputs, parameters and this library's results
// at the paper's sizes.
//   model_trunk_dump FOLDER
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdio>
#include <string>

#include "model/encodings.h"
#include "model/msa_module.h"
#include "model/pairformer.h"
#include "model/random.h"
#include "model/relative_position.h"
#include "tests/model/synthetic.h"
#include "tests/parity/npy_folder.h"

namespace megafold::model {
namespace {

using testing::NpyFolder;

constexpr std::int64_t kTokens = 37;
constexpr std::int64_t kRows = 19;

at::Tensor Normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, MakeGenerator(at::kCPU, seed), at::kFloat);
}

at::Tensor Mask(at::IntArrayRef shape, std::uint64_t seed) {
  at::Tensor mask = at::rand(shape, MakeGenerator(at::kCPU, seed), at::kFloat).lt(0.85);
  mask.select(1, 0).fill_(true);
  return mask;
}

const char* NameOf(Ops ops) { return ops == Ops::kFused ? "fused" : "baseline"; }

// The gradients of random projections of the results stand for the backward pass.
void WriteResults(const NpyFolder& folder, Ops ops, const at::Tensor& first, const at::Tensor& pair,
                  const at::Tensor& first_in, const at::Tensor& pair_in, const at::Tensor& valid) {
  const std::string name = NameOf(ops);
  folder.Write(name + ".first", first);
  folder.Write(name + ".pair", pair);
  const at::Tensor cotangent = Normal(pair.sizes(), 50) * valid.unsqueeze(-1);
  const auto gradients = torch::autograd::grad(
      {(pair * cotangent).sum() + first.narrow(1, 0, 1).sum()}, {first_in, pair_in});
  folder.Write("cotangent", cotangent);
  folder.Write(name + ".dfirst", gradients[0]);
  folder.Write(name + ".dpair", gradients[1]);
}

void DumpPairformer(const std::string& root) {
  const NpyFolder folder(root + "/pairformer");
  const ModelConfig config;
  const at::Tensor mask = Mask({1, kTokens}, 1);
  const at::Tensor s_in = Normal({1, kTokens, config.c_s}, 2).requires_grad_();
  const at::Tensor z_in = Normal({1, kTokens, kTokens, config.c_z}, 3).requires_grad_();
  folder.Write("mask", mask);
  folder.Write("first", s_in);
  folder.Write("pair", z_in);
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    PairformerBlock block(ops, config.c_s, config.c_z, config.pairformer);
    testing::Randomise(*block, 4);
    folder.WriteParameters(*block);
    at::Tensor s = s_in, z = z_in;
    block->forward(s, z, mask, PairMask(mask), {});
    WriteResults(folder, ops, s, z, s_in, z_in, PairMask(mask));
  }
}

void DumpMsaBlock(const std::string& root) {
  const NpyFolder folder(root + "/msa");
  const ModelConfig config;
  const at::Tensor mask = Mask({1, kTokens}, 5);
  const at::Tensor msa_mask = Mask({1, kRows, kTokens}, 6).logical_and(mask.unsqueeze(1));
  const at::Tensor m_in = Normal({1, kRows, kTokens, config.msa.c_m}, 7).requires_grad_();
  const at::Tensor z_in = Normal({1, kTokens, kTokens, config.c_z}, 8).requires_grad_();
  folder.Write("mask", mask);
  folder.Write("msa_mask", msa_mask);
  folder.Write("first", m_in);
  folder.Write("pair", z_in);
  for (const Ops ops : {Ops::kBaseline, Ops::kFused}) {
    MsaBlock block(ops, config.c_z, config.msa, config.pairformer.pair_heads, /*last=*/false);
    testing::Randomise(*block, 9);
    folder.WriteParameters(*block);
    at::Tensor m = m_in, z = z_in;
    block->forward(m, z, msa_mask, PairMask(mask), {}, {});
    WriteResults(folder, ops, m, z, m_in, z_in, PairMask(mask));
  }
}

void DumpRelativePosition(const std::string& root) {
  const NpyFolder folder(root + "/relative_position");
  Features features = testing::RandomBatch({.tokens = 90}, 10);
  features["residue_index"] =
      at::floor_divide(features["residue_index"], 2);  // several tokens a residue
  features["entity_id"] = at::floor_divide(features["token_index"], 60);
  for (const char* name : {"asym_id", "entity_id", "sym_id", "residue_index", "token_index"}) {
    folder.Write(name, features[name]);
  }
  RelativePositionEncoding encoding{ModelConfig()};
  testing::Randomise(*encoding, 11);
  folder.WriteParameters(*encoding);
  folder.Write("out", encoding(features));
}

}  // namespace
}  // namespace megafold::model

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: model_trunk_dump FOLDER\n");
    return 2;
  }
  megafold::model::DumpPairformer(argv[1]);
  megafold::model::DumpMsaBlock(argv[1]);
  megafold::model::DumpRelativePosition(argv[1]);
  return 0;
}
