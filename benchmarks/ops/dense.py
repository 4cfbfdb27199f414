#!/usr/bin/env python3
"""LayerNormLinear, Transition and TriangleMultiplication side by side with the plain composition of PyTorch operators.

    PYTHONPATH=python MEGAFOLD_LIBRARY_DIR=build/cpu/lib python benchmarks/ops/dense.py --output results.json

Shapes are the "benchmark" ones of tests/cases. Both run in one process on the same inputs, forward without autograd,
backward with the gradients of x and of every parameter; times are medians; memory is what forward and backward together
take beyond the inputs. Ours is compared with plain PyTorch in float64 first. Status 1 when ours failed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compare import one_variant, print_row, quickest, results_mib, slower_than_eager
from labels import OURS
from measure import Effort
from report import environment, write
from torch import Tensor
from torch.nn import functional as F

CASES = Path(__file__).resolve().parents[2] / "tests/cases"


@dataclass
class Inputs:
    x: Tensor
    mask: Tensor | None
    parameters: dict[str, Tensor]
    dout: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.x, *self.parameters.values()]

    def names(self) -> list[str]:
        return ["out", "dx", *(f"d{name}" for name in self.parameters)]

    def double(self) -> Inputs:
        def copy(t: Tensor) -> Tensor:
            return t.detach().double().requires_grad_(t.requires_grad)

        mask = None if self.mask is None else copy(self.mask)
        return Inputs(copy(self.x), mask, {name: copy(t) for name, t in self.parameters.items()}, copy(self.dout))


@dataclass(frozen=True)
class Operator:
    shapes: Callable[..., tuple[tuple[int, ...], tuple[int, ...], dict[str, tuple[int, ...]]]]  # x, output, parameters
    eager: Callable[[Inputs], Tensor]
    ours: Callable[[Inputs], Tensor]
    masked: bool = False


def _norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.layer_norm(x, gamma.shape, gamma, beta)


def _layer_norm_linear_shapes(M: int, K: int, C: int) -> Any:
    return (M, K), (M, C), {"gamma": (K,), "beta": (K,), "weight": (C, K), "linear_bias": (C,)}


def _layer_norm_linear(x: Inputs) -> Tensor:
    p = x.parameters
    return F.linear(_norm(x.x, p["gamma"], p["beta"]), p["weight"], p["linear_bias"])


def _transition_shapes(M: int, K: int, E: int) -> Any:
    return (M, K), (M, K), {"gamma": (K,), "beta": (K,), "g1": (E * K, K), "g2": (E * K, K), "w2": (K, E * K)}


def _transition(x: Inputs) -> Tensor:
    p = x.parameters
    u = _norm(x.x, p["gamma"], p["beta"])
    return F.linear(F.silu(F.linear(u, p["g1"])) * F.linear(u, p["g2"]), p["w2"])


def _triangle_shapes(B: int, N: int, C: int, hidden: int) -> Any:
    vectors = {"gamma_in": (C,), "beta_in": (C,), "gamma_out": (hidden,), "beta_out": (hidden,)}
    inner = {name: (hidden, C) for name in ("wap", "wag", "wbp", "wbg")}
    return (B, N, N, C), (B, N, N, C), {**vectors, **inner, "wop": (C, hidden), "wog": (C, C)}


def _triangle(x: Inputs) -> Tensor:
    p = x.parameters
    z = _norm(x.x, p["gamma_in"], p["beta_in"])
    mask = x.mask[..., None]
    a = mask * torch.sigmoid(F.linear(z, p["wag"])) * F.linear(z, p["wap"])
    b = mask * torch.sigmoid(F.linear(z, p["wbg"])) * F.linear(z, p["wbp"])
    t = torch.einsum("bikc,bjkc->bijc", a, b)
    return torch.sigmoid(F.linear(z, p["wog"])) * F.linear(_norm(t, p["gamma_out"], p["beta_out"]), p["wop"])


def _operators() -> dict[str, Operator]:
    import megafold

    return {
        "layer_norm_linear": Operator(
            _layer_norm_linear_shapes, _layer_norm_linear, lambda x: megafold.layer_norm_linear(x.x, **x.parameters)
        ),
        "transition": Operator(_transition_shapes, _transition, lambda x: megafold.transition(x.x, **x.parameters)),
        "triangle_multiplication": Operator(
            _triangle_shapes, _triangle, lambda x: megafold.triangle_multiplication(x.x, x.mask, True, **x.parameters), masked=True
        ),
    }


def make_inputs(operator: Operator, case: dict[str, int], options: argparse.Namespace) -> Inputs:
    generator = torch.Generator(options.device).manual_seed(0)

    def normal(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=options.device)).to(options.dtype)

    x, out, parameters = operator.shapes(**case)
    mask = None
    if operator.masked:
        mask = (torch.rand(x[:-1], generator=generator, device=options.device) < 0.9).to(options.dtype)
    weights = {name: normal(shape, shape[-1] ** -0.5 if len(shape) > 1 else 1.0) for name, shape in parameters.items()}
    leaves = {name: t.requires_grad_() for name, t in weights.items()}
    return Inputs(normal(x).requires_grad_(), mask, leaves, normal(out))


def run_case(name: str, operator: Operator, case: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    inputs = make_inputs(operator, case, options)
    exact = inputs.double()
    out = operator.eager(exact)
    expected = [out.detach(), *torch.autograd.grad(out, exact.leaves(), exact.dout)]
    title = f"{name} {' '.join(f'{key}={value}' for key, value in case.items())}"
    variants: dict[str, Any] = {}
    for _ in range(options.rounds):
        for variant, run in ((OURS, operator.ours), ("eager", operator.eager)):
            found = one_variant(lambda run=run: run, [inputs], expected, options)
            variants[variant] = quickest(variants.get(variant), found)
    for variant, result in variants.items():
        print_row(title, variant, result)
    return {"problem": {"name": title}, "results_mib": results_mib(inputs), "variants": variants}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--quick", action="store_true", help="the tests' small shapes and few calls: checks the program, not the speed")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each median")
    parser.add_argument("--rounds", type=int, default=1, help="take turns this often, and report each variant's lowest medians")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype)
    options.effort = Effort(2, 2, 0) if options.quick else Effort(5, 60, options.seconds)
    return options


def main() -> int:
    options = parse_arguments()
    results = []
    for name, operator in _operators().items():
        cases = json.loads((CASES / f"{name}.json").read_text())
        shapes = cases["test"][1:3] if options.quick else cases["benchmark"]
        results += [run_case(name, operator, case, options) for case in shapes]
    report = {
        "environment": environment(options.device),
        "dtype": str(options.dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "results": results,
    }
    if options.output:
        write(report, options.output)
    print(f"slower than eager PyTorch: {'; '.join(slower_than_eager(results)) or 'none'}")
    return int(any("failed" in r["variants"][OURS] for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
