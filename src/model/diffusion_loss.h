// The diffusion loss (section 3.7.1 of the supplement), in float32:
//   mean over samples of  w(sigma) (L_mse + bond L_bond) + smooth_lddt L_smooth_lddt,
//   w(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"
#include "model/features.h"

namespace megafold::model {

// What the losses read of a batch.
struct DiffusionTruth {
  explicit DiffusionTruth(const Features& features, const LossConfig& config);

  at::Tensor positions;   // [B, A, 3] float32
  at::Tensor exists;      // [B, A] bool: resolved, and no padding
  at::Tensor nucleotide;  // [B, A] bool
  at::Tensor weights;  // [B, A] float32: 1 + dna + rna + ligand as the atom is one; 0 where it does
                       // not exist
  at::Tensor bonds;    // [B, L, 2] int64
  at::Tensor bond_exists;  // [B, L] bool: both atoms exist
};

// Each [B, S], from predicted positions x [B, S, A, 3].
// (1/3) mean over existing atoms of weight |x_l - y_l|^2, y the truth aligned onto x. 0 without an
// atom.
at::Tensor MseLoss(const at::Tensor& x, const DiffusionTruth& truth);
// Mean over bonds of (|x_l - x_m| - |y_l - y_m|)^2. 0 without a bond.
at::Tensor BondLoss(const at::Tensor& x, const DiffusionTruth& truth);

struct DiffusionLosses {
  at::Tensor total;  // scalar, differentiable
  at::Tensor mse, bond,
      smooth_lddt;  // scalars, detached: means over samples; mse and bond times w(sigma)
};

// x [B, S, A, 3] denoised from noise levels sigma [B, S]. Entries without any existing atom count
// as 0.
DiffusionLosses DiffusionLoss(const at::Tensor& x, const at::Tensor& sigma, double sigma_data,
                              const DiffusionTruth& truth, const LossConfig& config);

}  // namespace megafold::model
