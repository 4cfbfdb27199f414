#include "model/diffusion_loss.h"

#include <ATen/ATen.h>

#include "model/autocast.h"
#include "model/rigid.h"
#include "model/smooth_lddt.h"

namespace megafold::model {

namespace {

// A token feature [B, N] at each atom: [B, A] float32. Padding takes token 0's and is masked by the
// caller.
at::Tensor AtAtoms(const Features& features, const char* name) {
  const at::Tensor token = Get(features, "atom_to_token").to(at::kLong);
  return Get(features, name).to(at::kFloat).gather(1, token);
}

// x [B, S, A, 3], index [B, L] -> [B, S, L, 3]
at::Tensor AtomsAt(const at::Tensor& x, const at::Tensor& index) {
  const std::int64_t samples = x.size(1);
  const std::int64_t count = index.size(1);
  return x.gather(2, index.view({x.size(0), 1, count, 1}).expand({-1, samples, count, 3}));
}

// |x_l - x_m| of the bonds: [B, S, L]. The small term keeps the gradient finite when two atoms
// meet.
at::Tensor BondLengths(const at::Tensor& x, const at::Tensor& bonds) {
  const at::Tensor offset = AtomsAt(x, bonds.select(2, 0)) - AtomsAt(x, bonds.select(2, 1));
  return (offset.square().sum(-1) + 1e-12).sqrt();
}

at::Tensor MaskedMean(const at::Tensor& x, const at::Tensor& mask) {  // [B, S, n], [B, n] -> [B, S]
  const at::Tensor present = mask.to(x.scalar_type()).unsqueeze(1);
  return (x * present).sum(-1) / present.sum(-1).clamp_min(1);
}

}  // namespace

DiffusionTruth::DiffusionTruth(const Features& features, const LossConfig& config) {
  positions = Get(features, "atom_positions").to(at::kFloat);
  exists = Get(features, "atom_resolved").to(at::kBool) & Get(features, "atom_mask").to(at::kBool);
  const at::Tensor dna = AtAtoms(features, "is_dna");
  const at::Tensor rna = AtAtoms(features, "is_rna");
  const at::Tensor ligand = AtAtoms(features, "is_ligand");
  nucleotide = (dna + rna) > 0;
  weights =
      (1 + config.dna * dna + config.rna * rna + config.ligand * ligand) * exists.to(at::kFloat);
  bonds = Get(features, "bond_atoms").to(at::kLong);
  const std::int64_t count = bonds.size(1);
  const at::Tensor ends = exists.gather(1, bonds.flatten(1)).view({exists.size(0), count, 2});
  bond_exists = Get(features, "bond_mask").to(at::kBool) & ends.all(-1);
}

at::Tensor MseLoss(const at::Tensor& x, const DiffusionTruth& truth) {
  const at::Tensor y =
      WeightedRigidAlign(truth.positions.unsqueeze(1).expand_as(x), x.detach(), truth.weights);
  const at::Tensor squared = (x - y).square().sum(-1) * truth.weights.unsqueeze(1);
  return MaskedMean(squared, truth.exists) / 3;
}

at::Tensor BondLoss(const at::Tensor& x, const DiffusionTruth& truth) {
  if (truth.bonds.size(1) == 0) return at::zeros({x.size(0), x.size(1)}, x.options());
  const at::Tensor wanted = BondLengths(truth.positions.unsqueeze(1), truth.bonds);
  return MaskedMean((BondLengths(x, truth.bonds) - wanted).square(), truth.bond_exists);
}

DiffusionLosses DiffusionLoss(const at::Tensor& x, const at::Tensor& sigma, double sigma_data,
                              const DiffusionTruth& truth, const LossConfig& config) {
  const NoAutocast float32;
  const at::Tensor positions = x.to(at::kFloat);
  const at::Tensor level = sigma.to(at::kFloat);
  const at::Tensor weight =
      (level.square() + sigma_data * sigma_data) / (level * sigma_data).square();
  const at::Tensor mse = (weight * MseLoss(positions, truth)).mean();
  const at::Tensor bond = (weight * BondLoss(positions, truth)).mean();
  const at::Tensor lddt =
      SmoothLddtLoss(positions, truth.positions, truth.nucleotide, truth.exists).mean();
  return {.total = mse + config.bond * bond + config.smooth_lddt * lddt,
          .mse = mse.detach(),
          .bond = bond.detach(),
          .smooth_lddt = lddt.detach()};
}

}  // namespace megafold::model
