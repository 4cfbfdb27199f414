// Triangle attention on the CPU from plain C++: no framework, the caller owns every buffer.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "megafold/core/build_info.h"
#include "megafold/core/error.h"
#include "megafold/core/tensor_view.h"
#include "megafold/ops/evo_attention.h"

namespace {

std::vector<float> RandomValues(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

int main() try {
  constexpr std::int64_t kResidues = 64, kHeads = 4, kDim = 32;
  constexpr std::size_t kPairSize = kResidues * kResidues * kHeads * kDim;
  std::vector<float> q = RandomValues(kPairSize, 1), k = RandomValues(kPairSize, 2), v = RandomValues(kPairSize, 3);
  std::vector<float> bias = RandomValues(kHeads * kResidues * kResidues, 4);
  std::vector<float> out(kPairSize), lse(kResidues * kHeads * kResidues);

  const auto pair = [](std::vector<float>& values) {
    return megafold::MakeView(values.data(), megafold::DType::kFloat32, {1, kResidues, kResidues, kHeads, kDim});
  };
  megafold::ops::EvoAttentionForwardArgs args;
  args.q = pair(q);
  args.k = pair(k);
  args.v = pair(v);
  args.bias = megafold::MakeView(bias.data(), megafold::DType::kFloat32, {1, 1, kHeads, kResidues, kResidues});
  args.scale = 1.0F / std::sqrt(static_cast<float>(kDim));
  args.out = pair(out);
  args.lse = megafold::MakeView(lse.data(), megafold::DType::kFloat32, {1, kResidues, kHeads, kResidues});

  std::vector<char> scratch(megafold::ops::EvoAttentionForwardWorkspace(args));
  megafold::ops::EvoAttentionForward(args, {scratch.data(), scratch.size()}, megafold::Stream{});

  std::printf("megafold %s: attention over %ld residues, O[0,0,0,0,:3] = %.4f %.4f %.4f\n",
              std::string(megafold::Version()).c_str(), static_cast<long>(kResidues), out[0], out[1], out[2]);
  return 0;
} catch (const megafold::Error& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
