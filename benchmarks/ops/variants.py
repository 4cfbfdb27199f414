"""The ways to compute EvoAttention that are measured side by side.

A variant is a function of Inputs (problems.py) that returns [B, S, Nq, H, D] with autograd. One that cannot run here, or
not on this problem, raises Unavailable with the reason, which the report keeps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from compare import Unavailable
from problems import Inputs
from torch import Tensor
from torch.nn import functional as F

Variant = Callable[[Inputs], Tensor]


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(2, 3)  # [B, S, H, N, D]


def _rows(x: Tensor) -> Tensor:
    return _heads_first(x).flatten(0, 1)  # [B S, H, N, D]


def _plain(q: Tensor, k: Tensor, v: Tensor, added: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.matmul(_heads_first(q) * q.shape[-1] ** -0.5, _heads_first(k).mT) + added
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.matmul(torch.softmax(scores, -1), _heads_first(v)).transpose(2, 3)


def eager(x: Inputs) -> Tensor:
    """The plain composition of PyTorch operators, in the type of q."""
    return _plain(x.q, x.k, x.v, x.added, x.bias)


def _compiled() -> Variant:
    plain = torch.compile(_plain, dynamic=False)
    return lambda x: plain(x.q, x.k, x.v, x.added, x.bias)


def sdpa(x: Inputs) -> Tensor:
    """scaled_dot_product_attention with bias and mask added into one tensor, which it needs."""
    batch, rows, queries, heads, width = x.q.shape
    term = x.added if x.bias is None else x.bias.to(x.q.dtype) + x.added
    term = term.expand(batch, rows, heads, queries, x.k.shape[2]).flatten(0, 1)
    out = F.scaled_dot_product_attention(_rows(x.q), _rows(x.k), _rows(x.v), attn_mask=term)
    return out.view(batch, rows, heads, queries, width).transpose(2, 3)


def _flex() -> Variant:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run(x: Inputs) -> Tensor:
        if x.q.device.type == "cpu":
            raise Unavailable("FlexAttention has no backward on the CPU")
        batch, rows, queries, heads, width = x.q.shape
        added = x.added.reshape(batch * rows, -1)
        bias = None if x.bias is None else x.bias[:, 0]
        shared = bias is not None and bias.shape[0] == 1

        def score(value: Tensor, row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if bias is not None:
                value = value + bias[0 if shared else row // rows, head, i, j]
            return value + added[row, j]

        out = compiled(_rows(x.q), _rows(x.k), _rows(x.v), score_mod=score)
        return out.view(batch, rows, heads, queries, width).transpose(2, 3)

    return run


def _megafold() -> Variant:
    import megafold

    return lambda x: megafold.evo_attention(x.q, x.k, x.v, x.keep, x.bias)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not importable: {error}") from error


def _needs_gpu(x: Inputs, name: str) -> None:
    if x.q.device.type != "cuda":
        raise Unavailable(f"{name} needs an NVIDIA GPU")


def _cuequivariance() -> Variant:
    package = _import("cuequivariance_torch")
    _import("cuequivariance_ops_torch")  # the kernels

    def run(x: Inputs) -> Tensor:
        _needs_gpu(x, "cuequivariance")
        if x.bias is None:
            raise Unavailable("cuequivariance's triangle attention takes a bias for every batch element")
        fold, keep = [_heads_first(t) for t in (x.q, x.k, x.v)], x.keep
        if x.bias.shape[0] == x.q.shape[0]:
            return package.triangle_attention(*fold, x.bias, mask=keep).transpose(2, 3)
        if x.q.shape[1] != 1:
            raise Unavailable("cuequivariance's triangle attention shares no bias over the batch")
        # The batch plays the part of the rows, which do share it.
        out = package.triangle_attention(*(t.transpose(0, 1) for t in fold), x.bias, mask=keep.transpose(0, 1))
        return out.transpose(0, 1).transpose(2, 3)

    return run


def _trifast() -> Variant:
    package = _import("trifast")

    def run(x: Inputs) -> Tensor:
        _needs_gpu(x, "trifast")
        if x.bias is None or not x.q.shape[1] == x.q.shape[2] == x.k.shape[2]:
            raise Unavailable("trifast computes triangle attention alone")
        fold = [t.permute(0, 3, 1, 2, 4) for t in (x.q, x.k, x.v)]  # [B, H, N, N, D]
        bias = x.bias[:, 0].to(x.q.dtype)  # [B, H, N, N]
        hidden = ~x.keep[:, :, 0, 0]  # [B, N, N], true = masked
        return package.triangle_attention(*fold, bias, hidden).permute(0, 2, 3, 1, 4)

    return run


def _triton_megafold() -> Variant:
    evoformer = _import("evoformer").TritonEvoformer

    def run(x: Inputs) -> Tensor:
        _needs_gpu(x, "the Triton MegaFold")
        if x.bias is None or x.q.shape[2] != x.k.shape[2]:
            raise Unavailable("the Triton MegaFold needs a bias, and as many queries as keys")
        return evoformer(x.q, x.k, x.v, x.added, x.bias)

    return run


# name -> a function that prepares the variant, run once per problem
VARIANTS: dict[str, Callable[[], Variant]] = {
    "megafold": _megafold,
    "eager": lambda: eager,
    "sdpa": lambda: sdpa,
    "flex": _flex,
    "cuequivariance": _cuequivariance,
    "trifast": _trifast,
    "triton-megafold": _triton_megafold,
    "compile": _compiled,
}
