"""What an operator does not take: one clear error that names the operand and the expected value."""

from __future__ import annotations

import re
from collections.abc import Callable

import megafold
import pytest
import torch
from operators import TINY, Case, Operands
from torch import Tensor

CASES: dict[str, Case] = {case.name: case for case in TINY}

WRONG: list[tuple[str, str, Callable[[Operands], dict[str, Tensor]], str]] = [
    ("layer_norm_linear", "width of weight", lambda o: {"weight": o["weight"][:, :-1]}, r"weight.*\[4, 4\].*\[4, 5\]"),
    ("layer_norm_linear", "rank of weight", lambda o: {"weight": o["weight"][0]}, r"weight.*\[5\].*\[C, K\]"),
    ("layer_norm_linear", "length of gamma", lambda o: {"gamma": o["gamma"][:3]}, r"gamma.*\[3\].*\[5\]"),
    ("layer_norm_linear", "dtype of weight", lambda o: {"weight": o["weight"].bfloat16()}, "weight.*bfloat16.*float32"),
    ("layer_norm_linear", "integer x", lambda o: {"x": o["x"].long()}, "x is Long, expected float32"),
    ("layer_norm_linear", "length of linear_bias", lambda o: {"linear_bias": o["linear_bias"][:1]}, r"linear_bias.*\[1\].*\[4\]"),
    ("transition", "shape of w2", lambda o: {"w2": o["w2"].t()}, r"w2.*\[6, 3\].*\[3, 6\]"),
    ("transition", "shape of g2", lambda o: {"g2": o["g2"][:-1]}, r"g2.*\[5, 3\].*\[6, 3\]"),
    ("triangle outgoing", "rank of x", lambda o: {"x": o["x"][0]}, r"x has shape \[3, 3, 3\].*\[B, N, N, C\]"),
    ("triangle outgoing", "square x", lambda o: {"x": o["x"][:, :2]}, r"x.*\[1, 2, 3, 3\]"),
    ("triangle outgoing", "shape of mask", lambda o: {"mask": o["mask"][..., None]}, r"mask.*\[1, 3, 3, 1\].*\[1, 3, 3\]"),
    ("evo_attention", "rank of q", lambda o: {"q": o["q"][0]}, r"q, k, v.*\[2, 3, 2, 2\].*\[B, S, N, H, D\]"),
    ("evo_attention", "heads of k", lambda o: {"k": o["k"][:, :, :, :1]}, r"k.*\[1, 2, 3, 1, 2\]"),
    ("evo_attention", "length of v", lambda o: {"v": o["v"][:, :, :2]}, r"v.*\[1, 2, 2, 2, 2\].*\[1, 2, 3, 2, 2\]"),
    ("evo_attention", "keys of mask", lambda o: {"mask": o["mask"][..., :2]}, r"mask.*\[1, 2, 1, 1, 2\]"),
    ("evo_attention", "rank of bias", lambda o: {"bias": o["bias"][0]}, r"bias has 4 dimensions.*\[B or 1, 1, H, Nq, Nk\]"),
    ("evo_attention", "queries of bias", lambda o: {"bias": o["bias"][..., :1, :]}, r"bias.*\[1, 1, 2, 1, 3\]"),
    ("evo_attention", "dtype of k", lambda o: {"k": o["k"].bfloat16()}, "k is bfloat16, expected float32"),
]


@pytest.mark.parametrize(("name", "what", "change", "message"), WRONG, ids=[f"{n}: {w}" for n, w, _, _ in WRONG])
def test_wrong_operand(name: str, what: str, change: Callable[[Operands], dict[str, Tensor]], message: str) -> None:
    case = CASES[name]
    o = {n: v.detach() for n, v in case.operands(torch.float32).items()}
    with pytest.raises(RuntimeError) as error:
        case.run(o | change(o))
    text = str(error.value)
    assert re.search(message, text), text
    assert "\n" not in text.strip(), text


@pytest.mark.parametrize("name", ["evo_attention", "evo_attention shared bias", "triangle outgoing"])
def test_mask_takes_no_gradient(name: str) -> None:
    case = CASES[name]
    o = case.operands(torch.float32)
    o["mask"] = o["mask"].detach().float().requires_grad_()
    with pytest.raises(RuntimeError, match="mask requires a gradient"):
        case.run(o)
    with torch.no_grad():
        case.run(o)


def test_gradient_of_a_freed_graph() -> None:
    case = CASES["layer_norm_linear"]
    out = case.run(case.operands(torch.float32)).sum()
    out.backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_operand_changed_in_place_before_backward() -> None:
    o = CASES["transition"].operands(torch.float32)
    out = CASES["transition"].run(o).sum()
    with torch.no_grad():
        o["w2"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_meta_tensors_have_shapes() -> None:
    x = torch.empty(2, 7, 16, device="meta", dtype=torch.bfloat16)
    out = megafold.layer_norm_linear(x, None, None, torch.empty(5, 16, device="meta", dtype=torch.bfloat16))
    assert out.shape == (2, 7, 5) and out.dtype == torch.bfloat16 and out.is_meta
