"""The ways to compute EvoAttention that are measured side by side.

A variant is a function of (q, k, v, mask, bias) in the layout of include/megafold/ops/evo_attention.h with an additive
mask, returning [B, S, Nq, H, D]. One that cannot run here, or not on this problem, raises Unavailable with the reason,
which the report keeps.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Variant = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


class Unavailable(Exception):
    """Why a variant is not measured."""


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(2, 3)  # [B, S, H, N, D]


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """The plain composition of PyTorch operators."""
    scores = torch.matmul(_heads_first(q), _heads_first(k).transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return torch.matmul(torch.softmax(scores, -1), _heads_first(v)).transpose(2, 3)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """scaled_dot_product_attention with bias and mask added into one tensor, which it needs."""
    batch, rows, queries, heads, width = q.shape
    term = None
    if bias is not None:
        term = bias.to(q.dtype)
    if mask is not None:
        term = mask.to(q.dtype) if term is None else term + mask.to(q.dtype)
    if term is not None:
        term = term.expand(batch, rows, heads, queries, k.shape[2]).flatten(0, 1)
    fold = [_heads_first(x).flatten(0, 1) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*fold, attn_mask=term)
    return out.view(batch, rows, heads, queries, width).transpose(2, 3)


def _flex() -> Variant:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        if q.device.type == "cpu":
            raise Unavailable("FlexAttention has no backward on the CPU")
        batch, rows, queries, heads, width = q.shape
        flat_mask = None if mask is None else mask.expand(batch, rows, 1, 1, k.shape[2]).reshape(batch * rows, -1)
        flat_bias = None if bias is None else bias[:, 0]
        shared = flat_bias is not None and flat_bias.shape[0] == 1

        def score(value: Tensor, row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if flat_bias is not None:
                value = value + flat_bias[0 if shared else row // rows, head, i, j]
            if flat_mask is not None:
                value = value + flat_mask[row, j]
            return value

        fold = [_heads_first(x).flatten(0, 1) for x in (q, k, v)]
        out = compiled(*fold, score_mod=None if flat_bias is None and flat_mask is None else score)
        return out.view(batch, rows, heads, queries, width).transpose(2, 3)

    return run


def _compiled() -> Variant:
    return torch.compile(eager, dynamic=False)


def _megafold() -> Variant:
    import megafold

    return megafold.evo_attention


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not importable: {error}") from error


def _triangle_only(q: Tensor, bias: Tensor | None, name: str) -> None:
    if bias is None or q.shape[1] != q.shape[2] or q.device.type != "cuda":
        raise Unavailable(f"{name} computes triangle attention with a bias on a GPU only")


def _cuequivariance() -> Variant:
    triangle_attention = _import("cuequivariance_torch").triangle_attention

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        _triangle_only(q, bias, "cuequivariance")
        keep = None if mask is None else mask == 0
        out = triangle_attention(*(_heads_first(x) for x in (q, k, v)), bias.to(torch.float32), mask=keep)
        return out.transpose(2, 3)

    return run


def _trifast() -> Variant:
    triangle_attention = _import("trifast").triangle_attention

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        _triangle_only(q, bias, "trifast")
        if q.shape[0] != 1:
            raise Unavailable("trifast takes one batch element")
        fold = [x[0].permute(2, 0, 1, 3) for x in (q, k, v)]  # [H, N, N, D]
        masked = torch.zeros(q.shape[1], k.shape[2], dtype=torch.bool, device=q.device)
        if mask is not None:
            masked = mask[0, :, 0, 0, :].expand(q.shape[1], -1) != 0
        out = triangle_attention(*fold, bias[0, 0].to(q.dtype), masked)
        return out.permute(1, 2, 0, 3)[None]

    return run


def _triton_megafold() -> Variant:
    evoformer = _import("evoformer").TritonEvoformer

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        if q.device.type != "cuda" or mask is None or q.shape[2] != k.shape[2]:
            raise Unavailable("the Triton kernels need a GPU, a mask, and as many queries as keys")
        return evoformer(q, k, v, mask, bias)

    return run


# name -> a function that prepares the variant, run once
VARIANTS: dict[str, Callable[[], Variant]] = {
    "megafold": _megafold,
    "eager": lambda: eager,
    "compile": _compiled,
    "sdpa": lambda: sdpa,
    "flex": _flex,
    "cuequivariance": _cuequivariance,
    "trifast": _trifast,
    "triton-megafold": _triton_megafold,
}
