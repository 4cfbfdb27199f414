"""The attentions of an AlphaFold-3-like model that are measured, their random inputs, and what is right for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MASKED = -1e9  # what an additive mask holds where a key is hidden
REFERENCE_SCORES = 2**26  # scores that the reference holds at a time: half a GiB in float64


@dataclass(frozen=True)
class Problem:
    name: str
    B: int
    S: int
    Nq: int
    Nk: int
    H: int
    D: int
    bias: str = "own"  # "own", "shared" by the batch, "none"
    ending: bool = False  # transposed strides, as the ending node's attention has


def cases() -> list[Problem]:
    """The shapes that the tests of every backend share, those with a head dimension that GPUs take."""
    file = Path(__file__).resolve().parents[2] / "tests/cases/evo_attention.json"
    listed = [case for group in json.loads(file.read_text()).values() for case in group]
    return [
        Problem(
            f"case {c['B']}x{c['S']}x{c['Nq']}x{c['Nk']}x{c['H']}x{c['D']}{' ending' if c.get('ending') else ''}",
            *(c[key] for key in ("B", "S", "Nq", "Nk", "H", "D")),
            bias=("none", "own", "shared")[c["bias"]],
            ending=bool(c.get("ending")),
        )
        for c in listed
        if c["D"] % 8 == 0
    ]


SETS: dict[str, list[Problem]] = {
    "gpu": [
        Problem("triangle N=384", 1, 384, 384, 384, 4, 32),
        Problem("triangle N=768", 1, 768, 768, 768, 4, 32),
        Problem("diffusion, 48 samples, shared bias", 48, 1, 384, 384, 16, 48, bias="shared"),
        Problem("single with pair bias", 1, 1, 384, 384, 16, 24),
        Problem("MSA row", 1, 128, 384, 384, 8, 32),
        Problem("MSA column", 1, 384, 128, 128, 8, 32, bias="none"),
        Problem("atom windows, 48 samples", 108, 48, 32, 128, 4, 32),
    ],
    "ending": [Problem("triangle N=384, ending node", 1, 384, 384, 384, 4, 32, ending=True)],
    "cpu": [
        Problem("triangle N=256", 1, 256, 256, 256, 4, 32),
        Problem("triangle N=256, ending node", 1, 256, 256, 256, 4, 32, ending=True),
        Problem("single with pair bias", 1, 1, 384, 384, 16, 24),
        Problem("diffusion, 8 samples, shared bias", 8, 1, 384, 384, 16, 48, bias="shared"),
        Problem("MSA row", 1, 64, 256, 256, 8, 32),
        Problem("MSA column", 1, 256, 64, 64, 8, 32, bias="none"),
        Problem("MSA column, strides of the MSA", 1, 256, 64, 64, 8, 32, bias="none", ending=True),
        Problem("atom windows", 96, 1, 32, 128, 4, 32),
    ],
    "cases": cases(),
    "quick": [
        Problem("triangle N=24", 1, 24, 24, 24, 2, 16),
        Problem("single with pair bias", 1, 1, 40, 40, 2, 24),
        Problem("MSA column", 1, 12, 9, 9, 2, 8, bias="none"),
        Problem("windows, shared bias", 3, 2, 8, 20, 2, 8, bias="shared", ending=True),
    ],
}


@dataclass
class Inputs:
    """q, k, v [B, S, N, H, D]; bias [B or 1, 1, H, Nq, Nk] or None. The mask in both its forms: each variant takes the one
    that it is made for, so that none pays for the other's conversion."""

    q: Tensor
    k: Tensor
    v: Tensor
    keep: Tensor  # [B, S, 1, 1, Nk] bool, true = attend
    added: Tensor  # the same as 0 or MASKED, in the type of q
    bias: Tensor | None
    dout: Tensor

    def leaves(self) -> list[Tensor]:
        return [t for t in (self.q, self.k, self.v, self.bias) if t is not None]

    def names(self) -> list[str]:
        return ["out", "dq", "dk", "dv", *([] if self.bias is None else ["dbias"])]

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.leaves(), self.dout))


def make_inputs(p: Problem, device: str, dtype: torch.dtype, bias_dtype: torch.dtype, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(kind)

    def tokens(length: int) -> Tensor:
        if p.ending:
            return normal(p.B, length, p.S, p.H, p.D).transpose(1, 2)
        return normal(p.B, p.S, length, p.H, p.D)

    keep = torch.rand(p.B, p.S, 1, 1, p.Nk, generator=generator, device=device) < 0.9
    keep[..., 0] = True  # peers differ in what a query without any key gives
    bias = None
    if p.bias != "none":
        bias = normal(1 if p.bias == "shared" else p.B, 1, p.H, p.Nq, p.Nk, kind=bias_dtype).requires_grad_()
    return Inputs(
        q=tokens(p.Nq).requires_grad_(),
        k=tokens(p.Nk).requires_grad_(),
        v=tokens(p.Nk).requires_grad_(),
        keep=keep,
        added=torch.where(keep, 0.0, MASKED).to(dtype),
        bias=bias,
        dout=normal(p.B, p.S, p.Nq, p.H, p.D),
    )


def _pieces(x: Inputs) -> Iterator[tuple[int, slice]]:
    """(batch, rows) such that the scores of a piece stay below REFERENCE_SCORES."""
    batches, rows, queries, heads, _ = x.q.shape
    step = max(1, REFERENCE_SCORES // (queries * x.k.shape[2] * heads))
    for batch in range(batches):
        for start in range(0, rows, step):
            yield batch, slice(start, start + step)


def reference(x: Inputs) -> list[Tensor]:
    """out, dq, dk, dv and, where there is a bias, dbias in float64 from the inputs as they are, piece by piece."""
    out, dq, dk, dv = (torch.empty(t.shape, dtype=torch.float64, device=t.device) for t in (x.dout, x.q, x.k, x.v))
    dbias = None if x.bias is None else torch.zeros(x.bias.shape, dtype=torch.float64, device=x.bias.device)
    scale = x.q.shape[-1] ** -0.5
    for batch, rows in _pieces(x):

        def piece(t: Tensor) -> Tensor:
            return t.detach()[batch, rows].double().transpose(1, 2)  # noqa: B023  [rows, H, N, D]

        q, k, v, cotangent = piece(x.q), piece(x.k), piece(x.v), piece(x.dout)
        scores = scale * q @ k.mT
        group = 0
        if x.bias is not None:
            group = batch if x.bias.shape[0] > 1 else 0
            scores += x.bias.detach()[group].double()
        p = scores.masked_fill_(~x.keep[batch, rows].transpose(1, 2), float("-inf")).softmax(-1)
        out[batch, rows] = (p @ v).transpose(1, 2)
        dv[batch, rows] = (p.mT @ cotangent).transpose(1, 2)
        ds = cotangent @ v.mT
        ds = p * (ds - (ds * p).sum(-1, keepdim=True))
        dq[batch, rows] = scale * (ds @ k).transpose(1, 2)
        dk[batch, rows] = scale * (ds.mT @ q).transpose(1, 2)
        if dbias is not None:
            dbias[group, 0] += ds.sum(0)
    return [out, dq, dk, dv, *([] if dbias is None else [dbias])]
