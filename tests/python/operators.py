"""The operators on small random problems, and their formulas as plain PyTorch: what the tests of this folder share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import megafold
import torch
from torch import Tensor
from torch.nn import functional as F

Operands = dict[str, Tensor]


def layer_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    as_x = [None if p is None else p.to(x.dtype) for p in (gamma, beta)]
    return F.layer_norm(x, x.shape[-1:], *as_x, eps=1e-5)


def eager_layer_norm_linear(o: Operands) -> Tensor:
    bias = o.get("linear_bias")
    return F.linear(layer_norm(o["x"], o.get("gamma"), o.get("beta")), o["weight"], None if bias is None else bias.to(o["x"].dtype))


def eager_transition(o: Operands) -> Tensor:
    u = layer_norm(o["x"], o.get("gamma"), o.get("beta"))
    return F.linear(F.silu(F.linear(u, o["g1"])) * F.linear(u, o["g2"]), o["w2"])


def eager_triangle(o: Operands, outgoing: bool) -> Tensor:
    z = layer_norm(o["x"], o.get("gamma_in"), o.get("beta_in"))
    mask = o["mask"][..., None].to(z.dtype) if "mask" in o else 1.0
    a = mask * torch.sigmoid(F.linear(z, o["wag"])) * F.linear(z, o["wap"])
    b = mask * torch.sigmoid(F.linear(z, o["wbg"])) * F.linear(z, o["wbp"])
    t = torch.einsum("bikc,bjkc->bijc" if outgoing else "bkic,bkjc->bijc", a, b)
    out = F.linear(layer_norm(t, o.get("gamma_out"), o.get("beta_out")), o["wop"])
    return torch.sigmoid(F.linear(z, o["wog"])) * out


def eager_evo_attention(o: Operands, scale: float | None = None) -> Tensor:
    q, k, v = (o[name].transpose(2, 3) for name in "qkv")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q @ k.transpose(-1, -2)
    if "bias" in o:
        scores = scores + o["bias"].to(scores.dtype)
    mask = o.get("mask")
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.to(scores.dtype)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, -1)
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)  # a row without keys is 0 by definition
    return (weights @ v).transpose(2, 3)


def run_layer_norm_linear(o: Operands) -> Tensor:
    return megafold.layer_norm_linear(o["x"], o.get("gamma"), o.get("beta"), o["weight"], o.get("linear_bias"))


def run_transition(o: Operands) -> Tensor:
    return megafold.transition(o["x"], o.get("gamma"), o.get("beta"), o["g1"], o["g2"], o["w2"])


TRIANGLE = ("gamma_in", "beta_in", "wap", "wag", "wbp", "wbg", "gamma_out", "beta_out", "wop", "wog")


def run_triangle(o: Operands, outgoing: bool) -> Tensor:
    return megafold.triangle_multiplication(o["x"], o.get("mask"), outgoing, *(o.get(name) for name in TRIANGLE))


def run_evo_attention(o: Operands, scale: float | None = None) -> Tensor:
    return megafold.evo_attention(o["q"], o["k"], o["v"], o.get("mask"), o.get("bias"), scale)


@dataclass(frozen=True)
class Case:
    """An operator on one problem. `make` draws the operands in float64; `parameters` may be float32 beside a lower type."""

    name: str
    op: str
    run: Callable[[Operands], Tensor]
    eager: Callable[[Operands], Tensor]
    make: Callable[[torch.Generator], Operands]
    parameters: tuple[str, ...] = ()

    def operands(self, dtype: torch.dtype, seed: int = 0, float32_parameters: bool = False) -> Operands:
        drawn = self.make(torch.Generator().manual_seed(seed))
        result = {}
        for name, value in drawn.items():
            kept = float32_parameters and name in self.parameters
            kind = torch.bool if value.dtype == torch.bool else torch.float32 if kept else dtype
            result[name] = value.to(kind).requires_grad_(kind != torch.bool and name != "mask")
        return result


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    return offset + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def keep_mask(generator: torch.Generator, *shape: int) -> Tensor:
    """Random, with a whole row of False at the front where there is more than one row."""
    mask = torch.rand(*shape, generator=generator) < 0.7
    mask[0, :1] = mask[0, :1] & (mask.shape[1] == 1)
    return mask


def make_layer_norm_linear(lead: tuple[int, ...], K: int, C: int, optional: bool) -> Callable[[torch.Generator], Operands]:
    def make(g: torch.Generator) -> Operands:
        o = {"x": normal(g, *lead, K, offset=0.5), "weight": normal(g, C, K, scale=K**-0.5)}
        if optional:
            o |= {"gamma": normal(g, K, offset=1), "beta": normal(g, K), "linear_bias": normal(g, C)}
        return o

    return make


def make_transition(lead: tuple[int, ...], K: int, E: int, optional: bool) -> Callable[[torch.Generator], Operands]:
    def make(g: torch.Generator) -> Operands:
        o = {"x": normal(g, *lead, K, offset=0.5)}
        o |= {name: normal(g, E * K, K, scale=K**-0.5) for name in ("g1", "g2")}
        o["w2"] = normal(g, K, E * K, scale=(E * K) ** -0.5)
        if optional:
            o |= {"gamma": normal(g, K, offset=1), "beta": normal(g, K)}
        return o

    return make


def make_triangle(B: int, N: int, C: int, Ch: int, optional: bool) -> Callable[[torch.Generator], Operands]:
    def make(g: torch.Generator) -> Operands:
        o = {"x": normal(g, B, N, N, C, offset=0.5), "wop": normal(g, C, Ch, scale=Ch**-0.5), "wog": normal(g, C, C, scale=C**-0.5)}
        o |= {name: normal(g, Ch, C, scale=C**-0.5) for name in ("wap", "wag", "wbp", "wbg")}
        if optional:
            o |= {"mask": keep_mask(g, B, N, N)}
            for side, width in (("in", C), ("out", Ch)):
                o |= {f"gamma_{side}": normal(g, width, offset=1), f"beta_{side}": normal(g, width)}
        return o

    return make


def make_evo_attention(
    B: int, S: int, Nq: int, Nk: int, H: int, D: int, mask: str = "bool", bias: int | None = None, ending: bool = False
) -> Callable[[torch.Generator], Operands]:
    """mask: "bool", "additive" or "none". bias: its batch size, None for none. ending: transposed strides of q, k, v."""

    def make(g: torch.Generator) -> Operands:
        def tokens(length: int) -> Tensor:
            return normal(g, B, length, S, H, D).transpose(1, 2) if ending else normal(g, B, S, length, H, D)

        o = {"q": tokens(Nq), "k": tokens(Nk), "v": tokens(Nk)}
        if mask != "none":
            o["mask"] = keep_mask(g, B, S, 1, 1, Nk)
        if mask == "additive":
            o["mask"] = normal(g, B, S, 1, 1, Nk, scale=3)
        if bias is not None:
            o["bias"] = normal(g, bias, 1, H, Nq, Nk)
        return o

    return make


_LINEAR = ("layer_norm_linear", run_layer_norm_linear, eager_layer_norm_linear)
_TRANSITION = ("transition", run_transition, eager_transition)
_OUTGOING = ("triangle_multiplication", lambda o: run_triangle(o, True), lambda o: eager_triangle(o, True))
_INCOMING = ("triangle_multiplication", lambda o: run_triangle(o, False), lambda o: eager_triangle(o, False))
_ATTENTION = ("evo_attention", run_evo_attention, eager_evo_attention)
_AFFINE = ("gamma", "beta", "linear_bias")
_TRIANGLE_AFFINE = ("gamma_in", "beta_in", "gamma_out", "beta_out")

# Small enough for finite differences.
TINY = [
    Case("layer_norm_linear", *_LINEAR, make_layer_norm_linear((2, 3), 5, 4, True), _AFFINE),
    Case("layer_norm_linear plain", *_LINEAR, make_layer_norm_linear((3,), 4, 2, False)),
    Case("transition", *_TRANSITION, make_transition((2, 2), 3, 2, True), _AFFINE),
    Case("transition plain", *_TRANSITION, make_transition((3,), 4, 1, False)),
    Case("triangle outgoing", *_OUTGOING, make_triangle(1, 3, 3, 2, True), _TRIANGLE_AFFINE),
    Case("triangle incoming", *_INCOMING, make_triangle(2, 2, 2, 3, True), _TRIANGLE_AFFINE),
    Case("triangle plain", *_OUTGOING, make_triangle(1, 2, 3, 3, False)),
    Case("evo_attention", *_ATTENTION, make_evo_attention(1, 2, 3, 3, 2, 2, "bool", 1), ("bias",)),
    Case("evo_attention shared bias", *_ATTENTION, make_evo_attention(2, 2, 2, 3, 1, 2, "additive", 1), ("bias",)),
    Case("evo_attention ending", *_ATTENTION, make_evo_attention(1, 3, 3, 3, 1, 2, "bool", 1, True), ("bias",)),
    Case("evo_attention plain", *_ATTENTION, make_evo_attention(2, 1, 3, 2, 1, 3, "none", None)),
]

# Odd sizes, the four attentions, widths of AlphaFold 2 and 3.
LARGER = [
    Case("layer_norm_linear 97x33", *_LINEAR, make_layer_norm_linear((97,), 33, 65, True), _AFFINE),
    Case("layer_norm_linear 4d", *_LINEAR, make_layer_norm_linear((2, 5, 23), 128, 16, True), _AFFINE),
    Case("layer_norm_linear one row", *_LINEAR, make_layer_norm_linear((), 24, 7, False)),
    Case("transition 4d", *_TRANSITION, make_transition((1, 11, 11), 64, 4, True), _AFFINE),
    Case("transition 97x33", *_TRANSITION, make_transition((97,), 33, 2, False)),
    Case("triangle outgoing 13", *_OUTGOING, make_triangle(2, 13, 32, 24, True), _TRIANGLE_AFFINE),
    Case("triangle incoming 13", *_INCOMING, make_triangle(1, 13, 24, 32, True), _TRIANGLE_AFFINE),
    Case("triangle N=1", *_INCOMING, make_triangle(2, 1, 16, 16, False)),
    Case("single with pair bias", *_ATTENTION, make_evo_attention(1, 1, 97, 97, 16, 24, "bool", 1), ("bias",)),
    Case("triangle attention", *_ATTENTION, make_evo_attention(1, 23, 23, 23, 4, 32, "bool", 1), ("bias",)),
    Case("triangle attention, ending", *_ATTENTION, make_evo_attention(1, 23, 23, 23, 4, 32, "bool", 1, True), ("bias",)),
    Case("MSA row", *_ATTENTION, make_evo_attention(2, 7, 31, 31, 8, 32, "additive", 2), ("bias",)),
    Case("MSA column", *_ATTENTION, make_evo_attention(1, 31, 9, 9, 8, 32, "bool", None), ("bias",)),
    Case("diffusion, shared bias", *_ATTENTION, make_evo_attention(5, 1, 29, 29, 3, 48, "bool", 1), ("bias",)),
    Case("atom windows", *_ATTENTION, make_evo_attention(3, 1, 32, 128, 4, 32, "bool", 3), ("bias",)),
    Case("one token", *_ATTENTION, make_evo_attention(1, 1, 1, 1, 2, 8, "none", 1), ("bias",)),
]
