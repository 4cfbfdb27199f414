// Every width, depth and constant of the model; the defaults are the AlphaFold 3 paper's.
#pragma once

#include <array>
#include <cstdint>

#include "config/fields.h"

namespace megafold::model {

// Plain PyTorch operators, or the fused ones of torch_ops/ops.h: same parameters, same results to
// rounding.
enum class Ops { kBaseline, kFused };
constexpr auto NamesOf(Ops) {
  return std::to_array<config::Named<Ops>>({{Ops::kBaseline, "baseline"}, {Ops::kFused, "fused"}});
}

// Local attention over the atom sequence, and the features it starts from.
struct AtomConfig {
  int c_atom = 128;
  int c_atompair = 16;
  int blocks = 3;
  int heads = 4;
  int window_queries = 32;
  int window_keys = 128;
  int transition_expansion = 2;

  template <class V>
  void Visit(V& v) {
    v("c_atom", c_atom, "width of an atom's representation", config::AtLeast(1));
    v("c_atompair", c_atompair, "width of an atom pair's representation", config::AtLeast(1));
    v("blocks", blocks, "blocks of each atom transformer", config::AtLeast(1));
    v("heads", heads, "attention heads; they divide c_atom", config::AtLeast(1));
    v("window_queries", window_queries, "atoms in a window of queries; even", config::AtLeast(2));
    v("window_keys", window_keys, "atoms in a window of keys; even, at least window_queries",
      config::AtLeast(2));
    v("transition_expansion", transition_expansion, "hidden width over c_atom", config::AtLeast(1));
  }
};

struct TemplateConfig {
  int blocks = 2;
  int channels = 64;
  int heads = 4;
  int transition_expansion = 2;
  double dropout = 0.25;

  template <class V>
  void Visit(V& v) {
    v("blocks", blocks, "blocks of the template stack", config::AtLeast(1));
    v("channels", channels, "width of a template's pair representation", config::AtLeast(1));
    v("heads", heads, "heads of triangle attention; they divide channels", config::AtLeast(1));
    v("transition_expansion", transition_expansion, "hidden width over channels",
      config::AtLeast(1));
    v("dropout", dropout, "probability that a pair row or column is dropped",
      config::Between(0, 0.99));
  }
};

struct MsaConfig {
  int blocks = 4;
  int c_m = 64;
  int outer_product_hidden = 32;
  int heads = 8;
  int head_width = 8;
  int transition_expansion = 4;
  double msa_dropout = 0.15;
  double pair_dropout = 0.25;

  template <class V>
  void Visit(V& v) {
    v("blocks", blocks, "blocks of the MSA module", config::AtLeast(1));
    v("c_m", c_m, "width of an alignment cell's representation", config::AtLeast(1));
    v("outer_product_hidden", outer_product_hidden, "hidden width of the outer product mean",
      config::AtLeast(1));
    v("heads", heads, "heads of the pair-weighted averaging", config::AtLeast(1));
    v("head_width", head_width, "width of a head of the pair-weighted averaging",
      config::AtLeast(1));
    v("transition_expansion", transition_expansion, "hidden width over c_m and c_z",
      config::AtLeast(1));
    v("msa_dropout", msa_dropout, "probability that a column of all alignment rows is dropped",
      config::Between(0, 0.99));
    v("pair_dropout", pair_dropout, "probability that a pair row or column is dropped",
      config::Between(0, 0.99));
  }
};

struct PairformerConfig {
  int blocks = 48;
  int single_heads = 16;
  int pair_heads = 4;
  int transition_expansion = 4;
  double dropout = 0.25;

  template <class V>
  void Visit(V& v) {
    v("blocks", blocks, "blocks of the Pairformer", config::AtLeast(1));
    v("single_heads", single_heads, "heads of single attention; they divide c_s",
      config::AtLeast(1));
    v("pair_heads", pair_heads, "heads of triangle attention; they divide c_z", config::AtLeast(1));
    v("transition_expansion", transition_expansion, "hidden width over c_s and c_z",
      config::AtLeast(1));
    v("dropout", dropout, "probability that a pair row or column is dropped",
      config::Between(0, 0.99));
  }
};

struct DiffusionConfig {
  double sigma_data = 16;
  // Training: noise level sigma_data * exp(p_mean + p_std * normal), `samples` copies of each
  // structure.
  int samples = 48;
  double p_mean = -1.2;
  double p_std = 1.5;
  double translation_sigma = 1;
  // The denoiser.
  int c_token = 768;
  int fourier_channels = 256;
  int conditioning_transitions = 2;
  int blocks = 24;
  int heads = 16;
  int transition_expansion = 2;
  // Sampling.
  double sigma_max = 160;
  double sigma_min = 4e-4;
  double rho = 7;
  double gamma_0 = 0.8;
  double gamma_min = 1;
  double noise_scale = 1.003;
  double step_scale = 1.5;

  template <class V>
  void Visit(V& v) {
    v("sigma_data", sigma_data, "standard deviation of coordinates, Angstrom", config::MoreThan(0));
    v("samples", samples, "noised copies of each structure per training step", config::AtLeast(1));
    v("p_mean", p_mean, "mean of ln(sigma / sigma_data) in training");
    v("p_std", p_std, "standard deviation of ln(sigma / sigma_data) in training",
      config::AtLeast(0));
    v("translation_sigma", translation_sigma, "random translation of a copy, Angstrom",
      config::AtLeast(0));
    v("c_token", c_token, "width of the diffusion transformer", config::AtLeast(1));
    v("fourier_channels", fourier_channels, "width of the noise level's embedding",
      config::AtLeast(1));
    v("conditioning_transitions", conditioning_transitions,
      "transitions on each conditioning representation", config::AtLeast(0));
    v("blocks", blocks, "blocks of the diffusion transformer", config::AtLeast(1));
    v("heads", heads, "heads of the diffusion transformer; they divide c_token",
      config::AtLeast(1));
    v("transition_expansion", transition_expansion, "hidden width over the width",
      config::AtLeast(1));
    v("sigma_max", sigma_max, "first noise level of sampling, times sigma_data",
      config::MoreThan(0));
    v("sigma_min", sigma_min, "last noise level of sampling, times sigma_data",
      config::MoreThan(0));
    v("rho", rho, "curvature of the sampling schedule", config::MoreThan(0));
    v("gamma_0", gamma_0, "noise added back per sampling step", config::AtLeast(0));
    v("gamma_min", gamma_min, "noise level above which noise is added back", config::AtLeast(0));
    v("noise_scale", noise_scale, "factor on the noise of sampling", config::AtLeast(0));
    v("step_scale", step_scale, "factor on the steps of sampling", config::MoreThan(0));
  }
};

struct LossConfig {
  double diffusion = 4;
  double distogram = 0.03;
  double bond = 1;
  double smooth_lddt = 1;
  double dna = 5;
  double rna = 5;
  double ligand = 10;

  template <class V>
  void Visit(V& v) {
    v("diffusion", diffusion, "weight of the diffusion loss", config::AtLeast(0));
    v("distogram", distogram, "weight of the distogram loss", config::AtLeast(0));
    v("bond", bond, "weight of the bond loss within the diffusion loss", config::AtLeast(0));
    v("smooth_lddt", smooth_lddt, "weight of smooth LDDT within the diffusion loss",
      config::AtLeast(0));
    v("dna", dna, "added weight of a DNA atom in alignment and squared error", config::AtLeast(0));
    v("rna", rna, "added weight of an RNA atom", config::AtLeast(0));
    v("ligand", ligand, "added weight of a ligand atom", config::AtLeast(0));
  }
};

struct DistogramConfig {
  int bins = 64;
  double min = 2;
  double max = 22;

  template <class V>
  void Visit(V& v) {
    v("bins", bins, "equal distance bins from min to max; the first and the last are open",
      config::AtLeast(2));
    v("min", min, "start of the bins, Angstrom", config::AtLeast(0));
    v("max", max, "end of the bins, Angstrom", config::MoreThan(0));
  }
};

struct ModelConfig {
  Ops ops = Ops::kFused;
  std::uint64_t init_seed = 0;
  bool checkpointing = true;
  int recycling = 4;
  int permutation_steps = 20;
  int c_s = 384;
  int c_z = 128;
  int relpos_max_residue = 32;
  int relpos_max_chain = 2;
  AtomConfig atom;
  TemplateConfig templates;
  MsaConfig msa;
  PairformerConfig pairformer;
  DiffusionConfig diffusion;
  DistogramConfig distogram;
  LossConfig loss;

  // Width of the input features of a token: atoms, residue class, profile, mean deletions.
  int c_s_inputs() const { return c_s + 32 + 32 + 1; }

  template <class V>
  void Visit(V& v) {
    v("ops", ops, "plain PyTorch operators or the fused ones");
    v("init_seed", init_seed, "seed of the initial weights");
    v("checkpointing", checkpointing,
      "keep a block's inputs alone for the backward pass and compute the block again there");
    v("recycling", recycling, "most trunk cycles; training draws from 1 to this, sampling runs all",
      config::AtLeast(1));
    v("permutation_steps", permutation_steps,
      "denoising steps of the sample that equal chains of the truth are assigned by; 0: the chains "
      "stay as the file names them",
      config::AtLeast(0));
    v("c_s", c_s, "width of the single representation", config::AtLeast(1));
    v("c_z", c_z, "width of the pair representation", config::AtLeast(1));
    v("relpos_max_residue", relpos_max_residue, "clip of residue and token offsets",
      config::AtLeast(1));
    v("relpos_max_chain", relpos_max_chain, "clip of chain copy offsets", config::AtLeast(1));
    v("atom", atom, "atom encoder and decoder");
    v("template", templates, "template embedder");
    v("msa", msa, "MSA module");
    v("pairformer", pairformer, "Pairformer stack");
    v("diffusion", diffusion, "diffusion module, training noise and sampler");
    v("distogram", distogram, "distogram head");
    v("loss", loss, "weights of the losses");
  }
};

}  // namespace megafold::model
