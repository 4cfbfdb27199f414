#include "tests/model/synthetic.h"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "model/random.h"

namespace megafold::model::testing {

namespace {

class Source {
 public:
  explicit Source(std::uint64_t seed) : generator_(MakeGenerator(at::kCPU, seed)) {}
  at::Tensor Integers(std::int64_t low, std::int64_t end, at::IntArrayRef shape,
                      at::ScalarType type) {
    return at::randint(low, end, shape, generator_).to(type);
  }
  at::Tensor Normal(at::IntArrayRef shape) { return at::randn(shape, generator_, at::kFloat); }
  at::Tensor Mask(double p, at::IntArrayRef shape) {
    return at::rand(shape, generator_, at::kFloat).lt(p).to(at::kByte);
  }

 private:
  at::Generator generator_;
};

void AddTokens(Features& f, const BatchSizes& sizes, Source& source) {
  const std::int64_t b = sizes.batch, n = sizes.tokens;
  const at::Tensor index = at::arange(n, at::kInt).expand({b, n}).contiguous();
  const at::Tensor second = index.ge(n / 2).to(at::kInt);
  f["token_mask"] = at::ones({b, n}, at::kByte);
  f["restype"] = source.Integers(0, 31, {b, n}, at::kByte);
  f["token_index"] = index;
  f["residue_index"] = index - second * (n / 2) + 1;
  f["asym_id"] = second;
  f["entity_id"] = at::zeros({b, n}, at::kInt);
  f["sym_id"] = second;
  const at::Tensor type = source.Integers(0, 4, {b, n}, at::kByte);
  const std::vector<std::string> types{"is_protein", "is_rna", "is_dna", "is_ligand"};
  for (std::size_t i = 0; i < types.size(); ++i) {
    f[types[i]] = type.eq(static_cast<std::int64_t>(i)).to(at::kByte);
  }
  const at::Tensor bonds = source.Mask(0.1, {b, n, n});
  f["token_bonds"] = bonds.logical_or(bonds.transpose(1, 2)).to(at::kByte);
  f["profile"] = at::softmax(source.Normal({b, n, 32}), -1);
  f["deletion_mean"] = source.Normal({b, n}).abs();
}

// Token t has 1 + t % 4 atoms in every entry.
void AddAtoms(Features& f, const BatchSizes& sizes, Source& source) {
  const std::int64_t b = sizes.batch;
  std::vector<std::int64_t> start, count, token_of;
  for (std::int64_t t = 0; t < sizes.tokens; ++t) {
    start.push_back(static_cast<std::int64_t>(token_of.size()));
    count.push_back(1 + t % 4);
    token_of.insert(token_of.end(), static_cast<std::size_t>(count.back()), t);
  }
  const auto a = static_cast<std::int64_t>(token_of.size());
  const auto rows = [&](const std::vector<std::int64_t>& values) {
    return at::tensor(values, at::kInt)
        .expand({b, static_cast<std::int64_t>(values.size())})
        .contiguous();
  };
  f["token_atom_start"] = rows(start);
  f["token_atom_count"] = rows(count);
  f["token_center_atom"] = rows(start);
  f["token_rep_atom"] = rows(start) + rows(count) - 1;
  f["token_frame_atoms"] = rows(start).unsqueeze(-1).repeat({1, 1, 3});
  f["token_has_frame"] = at::zeros({b, sizes.tokens}, at::kByte);
  f["atom_mask"] = at::ones({b, a}, at::kByte);
  f["atom_to_token"] = rows(token_of);
  f["ref_pos"] = source.Normal({b, a, 3}) * 2;
  f["ref_mask"] = source.Mask(0.95, {b, a});
  f["ref_element"] = source.Integers(1, 17, {b, a}, at::kByte);
  f["ref_charge"] = source.Integers(-1, 2, {b, a}, at::kFloat);
  f["ref_atom_name_chars"] = source.Integers(0, 64, {b, a, 4}, at::kByte);
  f["ref_space_uid"] = rows(token_of);
  f["atom_positions"] = source.Normal({b, a, 3}) * 6;
  f["atom_resolved"] = source.Mask(0.9, {b, a});
  f["entity_copies"] = at::ones({b, sizes.tokens}, at::kInt);
  f["atom_copy_positions"] = at::zeros({b, 0, a, 3});
  f["atom_copy_resolved"] = at::zeros({b, 0, a}, at::kByte);
  f["bond_atoms"] = source.Integers(0, a, {b, 2, 2}, at::kInt);
  f["bond_mask"] = at::ones({b, 2}, at::kByte);
}

void AddAlignmentAndTemplates(Features& f, const BatchSizes& sizes, Source& source) {
  const std::int64_t b = sizes.batch, n = sizes.tokens, m = sizes.rows, t = sizes.templates;
  f["msa"] = source.Integers(0, 32, {b, m, n}, at::kByte);
  f["msa_deletions"] = source.Integers(0, 4, {b, m, n}, at::kByte);
  f["msa_mask"] = source.Mask(0.9, {b, m, n});
  f["template_restype"] = source.Integers(0, 32, {b, t, n}, at::kByte);
  f["template_pseudo_beta"] = source.Normal({b, t, n, 3}) * 10;
  f["template_pseudo_beta_mask"] = source.Mask(0.8, {b, t, n});
  f["template_backbone"] = source.Normal({b, t, n, 3, 3}) * 3;
  f["template_backbone_mask"] = source.Mask(0.8, {b, t, n});
}

// Which dimensions of a feature are tokens (N), atoms (A), rows (M), templates (T), bonds (L),
// copies (K); by its shape in docs/features.md.
std::string DimensionsOf(const std::string& name) {
  static const std::map<std::string, std::string> special{{"token_bonds", "NN"},
                                                          {"msa", "MN"},
                                                          {"msa_deletions", "MN"},
                                                          {"msa_mask", "MN"},
                                                          {"atom_mask", "A"},
                                                          {"atom_to_token", "A"},
                                                          {"atom_positions", "A"},
                                                          {"atom_resolved", "A"},
                                                          {"bond_atoms", "L"},
                                                          {"bond_mask", "L"},
                                                          {"atom_copy_positions", "KA"},
                                                          {"atom_copy_resolved", "KA"}};
  if (const auto found = special.find(name); found != special.end()) return found->second;
  if (name.starts_with("template_")) return "TN";
  return name.starts_with("ref_") ? "A" : "N";
}

}  // namespace

Features RandomBatch(const BatchSizes& sizes, std::uint64_t seed) {
  Source source(seed);
  Features features;
  AddTokens(features, sizes, source);
  AddAtoms(features, sizes, source);
  AddAlignmentAndTemplates(features, sizes, source);
  return features;
}

Features Padded(const Features& features, std::uint64_t seed) {
  const std::map<char, std::int64_t> extra{{'N', 3}, {'A', 5}, {'M', 2},
                                           {'T', 1}, {'L', 1}, {'K', 1}};
  Source source(seed);
  Features padded;
  for (const auto& [name, tensor] : features) {
    const std::string dimensions = DimensionsOf(name);
    std::vector<std::int64_t> shape = tensor.sizes().vec();
    for (std::size_t i = 0; i < dimensions.size(); ++i) shape[i + 1] += extra.at(dimensions[i]);
    at::Tensor larger = at::zeros(shape, tensor.options());
    const bool is_mask = name.ends_with("_mask") || name.ends_with("_resolved");
    if (!is_mask && tensor.is_floating_point()) {
      larger = source.Normal(shape) * 5;
    } else if (!is_mask && tensor.scalar_type() == at::kByte) {
      larger = source.Integers(0, 2, shape, at::kByte);
    }
    at::Tensor inner = larger;
    for (std::size_t i = 0; i < dimensions.size(); ++i) {
      const auto d = static_cast<std::int64_t>(i) + 1;
      inner = inner.narrow(d, 0, tensor.size(d));
    }
    inner.copy_(tensor);
    padded[name] = larger;
  }
  return padded;
}

ModelConfig TinyConfig(Ops ops) {
  ModelConfig config;
  config.ops = ops;
  config.recycling = 2;
  config.permutation_steps = 0;
  config.c_s = 24;
  config.c_z = 16;
  config.atom = {.c_atom = 16,
                 .c_atompair = 8,
                 .blocks = 1,
                 .heads = 2,
                 .window_queries = 8,
                 .window_keys = 16,
                 .transition_expansion = 2};
  config.templates = {
      .blocks = 1, .channels = 8, .heads = 2, .transition_expansion = 2, .dropout = 0.25};
  config.msa = {.blocks = 2,
                .c_m = 12,
                .outer_product_hidden = 4,
                .heads = 2,
                .head_width = 4,
                .transition_expansion = 2,
                .msa_dropout = 0.15,
                .pair_dropout = 0.25};
  config.pairformer = {
      .blocks = 2, .single_heads = 3, .pair_heads = 2, .transition_expansion = 2, .dropout = 0.25};
  config.diffusion.samples = 2;
  config.diffusion.c_token = 32;
  config.diffusion.fourier_channels = 16;
  config.diffusion.conditioning_transitions = 1;
  config.diffusion.blocks = 2;
  config.diffusion.heads = 2;
  config.distogram.bins = 8;
  return config;
}

void Randomise(torch::nn::Module& module, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (const auto& item : module.named_parameters()) {
    at::Tensor parameter = item.value();
    const at::Generator generator = MakeGenerator(at::kCPU, DeriveSeed(seed, item.key()));
    const bool is_scale = parameter.dim() == 1 && item.key().ends_with("weight");
    const double fan_in = parameter.dim() == 2 ? static_cast<double>(parameter.size(1)) : 16;
    parameter.normal_(is_scale ? 1 : 0, 1 / std::sqrt(fan_in), generator);
  }
}

bool HasNoEffect(const std::string& parameter) {
  return parameter.ends_with("norm_z.bias") || parameter.ends_with("decoder.norm.bias");
}

double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  const double scale = b.abs().max().item<double>();
  return (a - b).abs().max().item<double>() / (scale > 0 ? scale : 1);
}

}  // namespace megafold::model::testing
