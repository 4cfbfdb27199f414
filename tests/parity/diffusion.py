"""Holds the diffusion losses and transformers against openfold3 0.5.0 and protenix 2.0.0. Run by hand:

    cmake --build --preset cpu --target model_diffusion_dump && build/cpu/bin/model_diffusion_dump /tmp/dump
    pip install --no-deps --target /tmp/peers openfold3==0.5.0 protenix==2.0.0 gemmi scipy optree biotite biotraj \
        ml_collections absl-py msgpack pandas einops rdkit networkx requests urllib3 idna certifi charset_normalizer
    LAYERNORM_TYPE=torch PYTHONPATH=/tmp/peers python tests/parity/diffusion.py /tmp/dump

Prints the largest difference over the largest value, of results and of gradients; exits with 1 when one is above 1e-4.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from openfold3.core.loss import diffusion as openfold3_loss
from protenix.metrics.rmsd import weighted_rigid_align as protenix_align
from protenix.model import loss as protenix_loss
from protenix.model.modules.transformer import DiffusionTransformer

TOLERANCE = 1e-4
# ours -> protenix's, inside a block
RENAMED = {
    "attention.adaptive_norm_a.norm_s.weight": "attention_pair_bias.layernorm_a.layernorm_s.weight",
    "attention.adaptive_norm_a.linear_gamma.weight": "attention_pair_bias.layernorm_a.linear_s.weight",
    "attention.adaptive_norm_a.linear_gamma.bias": "attention_pair_bias.layernorm_a.linear_s.bias",
    "attention.adaptive_norm_a.linear_beta.weight": "attention_pair_bias.layernorm_a.linear_nobias_s.weight",
    "attention.norm_z.weight": "attention_pair_bias.layernorm_z.weight",
    "attention.linear_z.weight": "attention_pair_bias.linear_nobias_z.weight",
    "attention.linear_q.weight": "attention_pair_bias.attention.linear_q.weight",
    "attention.linear_q.bias": "attention_pair_bias.attention.linear_q.bias",
    "attention.linear_k.weight": "attention_pair_bias.attention.linear_k.weight",
    "attention.linear_v.weight": "attention_pair_bias.attention.linear_v.weight",
    "attention.linear_g.weight": "attention_pair_bias.attention.linear_g.weight",
    "attention.linear_out.weight": "attention_pair_bias.attention.linear_o.weight",
    "attention.linear_s.weight": "attention_pair_bias.linear_a_last.weight",
    "attention.linear_s.bias": "attention_pair_bias.linear_a_last.bias",
    "transition.norm.norm_s.weight": "conditioned_transition_block.adaln.layernorm_s.weight",
    "transition.norm.linear_gamma.weight": "conditioned_transition_block.adaln.linear_s.weight",
    "transition.norm.linear_gamma.bias": "conditioned_transition_block.adaln.linear_s.bias",
    "transition.norm.linear_beta.weight": "conditioned_transition_block.adaln.linear_nobias_s.weight",
    "transition.linear_a.weight": "conditioned_transition_block.linear_nobias_a1.weight",
    "transition.linear_b.weight": "conditioned_transition_block.linear_nobias_a2.weight",
    "transition.linear_out.weight": "conditioned_transition_block.linear_nobias_b.weight",
    "transition.linear_s.weight": "conditioned_transition_block.linear_s.weight",
    "transition.linear_s.bias": "conditioned_transition_block.linear_s.bias",
}
# Adds the same to every key of a head: no attention depends on it, and protenix leaves it out.
WITHOUT_EFFECT = "attention.norm_z.bias"


class Report:
    def __init__(self) -> None:
        self.failed = False

    def compare(self, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        bad = not error <= TOLERANCE
        self.failed |= bad
        print(f"{name:48s} {error:.1e}{'  DIFFERS' if bad else ''}")


def load(folder: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{name}.npy"))


def compare_losses(folder: Path, report: Report) -> None:
    x = load(folder, "x")[0].requires_grad_()
    truth, exists = load(folder, "truth")[0], load(folder, "exists")[0]
    weights, nucleotide = load(folder, "weights")[0], load(folder, "nucleotide")[0]
    targets = truth.expand_as(x)

    aligned = openfold3_loss.weighted_rigid_align(targets, x.detach(), weights, exists, 1e-10)
    report.compare("openfold3 weighted_rigid_align", load(folder, "aligned")[0], aligned)
    aligned = protenix_align(targets, x.detach(), weights.expand(len(x), -1))
    report.compare("protenix weighted_rigid_align", load(folder, "aligned")[0], aligned)

    def judge(name: str, ours: str, theirs: torch.Tensor) -> None:
        value = load(folder, ours)[0]
        if theirs.dim() == 0:  # protenix averages over the samples
            value, theirs = value.sum(), theirs * len(x)
        gradient = torch.autograd.grad(theirs.sum(), x, retain_graph=True)[0]
        report.compare(name, value, theirs.detach())
        report.compare(f"{name} gradient", load(folder, f"{ours}_grad")[0], gradient)

    # openfold3's losses read token features: here every atom is its own token.
    ones = torch.ones_like(exists)
    batch = {
        "token_mask": ones, "num_atoms_per_token": ones.long(), "is_dna": nucleotide, "is_rna": 0 * ones,
        "is_ligand": 0 * ones, "ground_truth": {"atom_positions": truth, "atom_resolved_mask": exists},
    }
    typed = dict(batch, is_dna=(weights - 1).clamp_min(0))  # so that 1 + is_dna is our weight
    judge("openfold3 mse_loss", "mse", openfold3_loss.mse_loss(x, typed, ones, 1.0, 0.0, 0.0, 1e-10))
    judge("openfold3 smooth_lddt_loss", "smooth_lddt", openfold3_loss.smooth_lddt_loss(x, batch, ones, 1e-10))

    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    wanted = torch.cdist(truth, truth, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = exists[:, None] * exists[None, :]
    within = wanted < torch.where(nucleotide[:, None] > 0, 30.0, 15.0)
    mask = pairs.bool() & within & ~torch.eye(len(truth), dtype=torch.bool)
    loss = protenix_loss.SmoothLDDTLoss(reduction=None)(distances, wanted, pairs, mask)
    judge("protenix SmoothLDDTLoss", "smooth_lddt", loss)

    bonds = load(folder, "bonds")[0].long()[load(folder, "bond_exists")[0].bool()]
    bond_mask = torch.zeros_like(wanted)
    for first, second in bonds.tolist():
        bond_mask[first, second] += 1
    loss = protenix_loss.BondLoss(eps=0, reduction=None)(distances, wanted, pairs, bond_mask)
    judge("protenix BondLoss", "bond", loss)


def compare_transformer(folder: Path, name: str, report: Report, heads: int, windows: bool) -> None:
    ours = {path.name.removeprefix(f"{name}.p.").removesuffix(".npy"): np.load(path)
            for path in folder.glob(f"{name}.p.*.npy")}
    state = {}
    for key, value in ours.items():
        _, block, rest = key.split(".", 2)
        if rest != WITHOUT_EFFECT:
            state[f"blocks.{block}.{RENAMED[rest]}"] = torch.from_numpy(value)
    a, s, z = (load(folder, f"{name}.{part}") for part in "asz")
    cotangent, out, gradient = (load(folder, f"{name}.{part}") for part in ("cotangent", "out", "a_grad"))
    blocks = 1 + max(int(key.split(".")[1]) for key in ours)
    model = DiffusionTransformer(c_a=a.shape[-1], c_s=s.shape[-1], c_z=z.shape[-1], n_blocks=blocks, n_heads=heads)
    model.load_state_dict(state, strict=True)
    atoms = int(load(folder, f"{name}.count")) if windows else a.shape[2]
    s = s.expand(*a.shape[:3], -1)
    a, s, cotangent, out, gradient = (t[0, :, :atoms] for t in (a, s, cotangent, out, gradient))
    a = a.clone().requires_grad_()
    window = {"n_queries": 32, "n_keys": 128} if windows else {}
    theirs = model(a=a, s=s, z=z, **window)
    report.compare(f"protenix DiffusionTransformer, {name}", out, theirs.detach())
    # What our padding atoms put into the projection is left out: they see real keys, but no real atom sees them.
    if not windows:
        report.compare(f"protenix DiffusionTransformer, {name} gradient", gradient,
                       torch.autograd.grad((theirs * cotangent).sum(), a)[0])


def main() -> int:
    folder, report = Path(sys.argv[1]), Report()
    torch.manual_seed(0)
    compare_losses(folder, report)
    for ops in ("baseline", "fused"):
        compare_transformer(folder, f"tokens_{ops}", report, heads=4, windows=False)
        compare_transformer(folder, f"atoms_{ops}", report, heads=4, windows=True)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
