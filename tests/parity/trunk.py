"""Holds a Pairformer block, an MSA block and the relative positions against openfold3 0.5.0 and protenix 2.0.0. By hand:

    cmake --build --preset cpu --target model_trunk_dump && build/cpu/bin/model_trunk_dump /tmp/dump
    pip install --no-deps --target /tmp/peers openfold3==0.5.0 protenix==2.0.0 pyyaml gemmi scipy optree biotite biotraj \
        ml_collections absl-py msgpack pandas einops rdkit networkx requests urllib3 idna certifi charset_normalizer
    LAYERNORM_TYPE=torch PYTHONPATH=/tmp/peers python tests/parity/trunk.py /tmp/dump

All parameters are random, and load under their other names with nothing left over on either side. Prints the largest difference
over the largest value, of results and of gradients; exits with 1 when one is above its bound.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
from openfold3.core.model.latent.msa_module import MSAModuleBlock
from openfold3.core.model.latent.pairformer import PairFormerBlock
from protenix.model.modules.embedders import RelativePositionEncoding

BOUNDS = {"pairformer": 1e-5, "msa": 5e-5, "relative_position": 1e-6}
# ours -> openfold3's, in order
RENAMED = [
    (r"^pair_stack\.transition\.", "pair_stack.pair_transition."),
    (r"^attention\.", "attn_pair_bias."),
    (r"^averaging\.", "msa_att_row."),
    (r"(tri_att_\w+|attn_pair_bias)\.linear_([qkvg])\.", r"\1.mha.linear_\2."),
    (r"(tri_att_\w+|attn_pair_bias)\.linear_out\.", r"\1.mha.linear_o."),
    (r"(tri_att_\w+)\.linear_bias\.", r"\1.linear_z."),
    (r"msa_att_row\.linear_out\.", "msa_att_row.linear_o."),
    (r"outer_product_mean\.linear_a\.", "outer_product_mean.linear_1."),
    (r"outer_product_mean\.linear_b\.", "outer_product_mean.linear_2."),
    (r"transition\.linear_([ab])\.", r"transition.swiglu.linear_\1."),
    (r"\.norm(_\w+)?\.", r".layer_norm\1."),
]


def load(folder: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{name}.npy"))


def parameters(folder: Path, transition: str) -> dict[str, torch.Tensor]:
    """Our parameters under openfold3's names; `transition` is its name for the block's own transition."""
    state = {}
    for path in folder.glob("parameter.*.npy"):
        name = path.name.removeprefix("parameter.").removesuffix(".npy")
        name = re.sub(r"^transition\.", f"{transition}.", name)
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.from_numpy(np.load(path))
    return state


class Report:
    def __init__(self) -> None:
        self.failed = False

    def compare(self, part: str, what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape, f"{part} {what}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        bad = not error <= BOUNDS[part]
        self.failed |= bad
        print(f"{part:18s} {what:18s} {error:.1e}{'  DIFFERS' if bad else ''}")


def read_bias_as_the_supplement(block: torch.nn.Module) -> None:
    """Algorithm 15 adds b_ki around the ending node, and so do we and protenix; openfold3 0.5.0 adds b_ik unless told."""
    layer = block.pair_stack.tri_att_end
    forward = layer.forward
    layer.forward = lambda *args, transpose_bias=False, **kwargs: forward(*args, transpose_bias=False, **kwargs)


def compare_block(folder: Path, part: str, block: torch.nn.Module, transition: str, report: Report) -> None:
    block.load_state_dict(parameters(folder, transition), strict=True)
    block.eval()
    read_bias_as_the_supplement(block)
    mask = load(folder, "mask")
    pair_mask = mask[..., None] * mask[..., None, :]
    first = load(folder, "first").requires_grad_()
    pair = load(folder, "pair").requires_grad_()
    first_mask = load(folder, "msa_mask") if part == "msa" else mask
    first_out, pair_out = block(first, pair, first_mask, pair_mask, _mask_trans=False)
    ((pair_out * load(folder, "cotangent")).sum() + first_out[:, :1].sum()).backward()
    for ops in ("baseline", "fused"):
        # rows and pairs of padding mean nothing
        keep_first, keep_pair = mask[..., None], pair_mask[..., None]
        report.compare(part, f"{ops} first", load(folder, f"{ops}.first") * keep_first, first_out.detach() * keep_first)
        report.compare(part, f"{ops} pair", load(folder, f"{ops}.pair") * keep_pair, pair_out.detach() * keep_pair)
        report.compare(part, f"{ops} dfirst", load(folder, f"{ops}.dfirst") * keep_first, first.grad * keep_first)
        report.compare(part, f"{ops} dpair", load(folder, f"{ops}.dpair") * keep_pair, pair.grad * keep_pair)


def compare_relative_position(folder: Path, report: Report) -> None:
    module = RelativePositionEncoding()
    module.load_state_dict({"linear_no_bias.weight": load(folder, "parameter.linear.weight")}, strict=True)
    names = ("asym_id", "entity_id", "sym_id", "residue_index", "token_index")
    features = module.generate_relp({name: load(folder, name).long() for name in names})
    report.compare("relative_position", "out", load(folder, "out"), module(features["relp"]).detach())


def main(root: Path) -> int:
    report = Report()
    pairformer = PairFormerBlock(
        c_s=384, c_z=128, c_hidden_pair_bias=24, no_heads_pair_bias=16, c_hidden_mul=128, c_hidden_pair_att=32,
        no_heads_pair=4, transition_type="swiglu", transition_n=4, pair_dropout=0.25, fuse_projection_weights=False, inf=1e9)
    compare_block(root / "pairformer", "pairformer", pairformer, "single_transition", report)
    msa = MSAModuleBlock(
        c_m=64, c_z=128, c_hidden_msa_att=8, c_hidden_opm=32, c_hidden_mul=128, c_hidden_pair_att=32, no_heads_msa=8,
        no_heads_pair=4, transition_type="swiglu", transition_n=4, msa_dropout=0.15, pair_dropout=0.25, opm_first=True,
        fuse_projection_weights=False, inf=1e9, eps=1e-3)
    compare_block(root / "msa", "msa", msa, "msa_transition", report)
    compare_relative_position(root / "relative_position", report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
