"""One operator, several ways: what every benchmark of this folder measures of a variant and says of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from labels import OURS
from measure import MEBIBYTE, Effort, median_ms, peak_mib
from torch import Tensor

WRONG = 0.1  # relative error from which a variant computes something else than the others


class Unavailable(Exception):
    """Why a variant is not measured."""


class Inputs(Protocol):
    """What a variant is called with."""

    dout: Tensor

    def leaves(self) -> list[Tensor]:
        """The operands whose gradients are computed."""

    def names(self) -> list[str]:
        """Of the output and of each leaf's gradient."""


def relative_errors(variant: Callable[[Any], Tensor], inputs: Inputs, expected: list[Tensor]) -> dict[str, float]:
    out = variant(inputs)
    got = [out.detach(), *torch.autograd.grad(out, inputs.leaves(), inputs.dout)]
    errors = {}
    for name, tensor, right in zip(inputs.names(), got, expected, strict=True):
        if tensor.shape != right.shape:
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(right.shape)}")
        # A gradient that is zero by cancellation (one key) is held to a thousandth of what the others are.
        size = torch.clamp(right.norm(), min=1e-3 * right.numel() ** 0.5)
        errors[name] = float((tensor.double() - right).norm() / size)
    return errors


def results_mib(inputs: Inputs) -> float:
    """The output and the gradients alone, which every variant has to hold."""
    return sum(t.numel() * t.element_size() for t in (inputs.dout, *inputs.leaves())) / MEBIBYTE


def measure(variant: Callable[[Any], Tensor], sets: list[Any], device: str, effort: Effort) -> dict[str, Any]:
    graphs: dict[int, Tensor] = {}

    def forward(i: int) -> None:
        with torch.no_grad():
            variant(sets[i % len(sets)])

    def build(i: int) -> None:
        graphs[0] = variant(sets[i % len(sets)])

    def backward(i: int) -> None:
        inputs = sets[i % len(sets)]
        torch.autograd.grad(graphs.pop(0), inputs.leaves(), inputs.dout)

    def both(i: int) -> None:
        out = variant(sets[i % len(sets)])
        inputs = sets[i % len(sets)]
        torch.autograd.grad(out, inputs.leaves(), inputs.dout)

    result: dict[str, Any] = {}
    result["forward_ms"], result["forward_calls"] = median_ms(forward, device, effort)
    result["backward_ms"], result["backward_calls"] = median_ms(backward, device, effort, build)
    result["peak_mib"] = peak_mib(both, device)
    return result


def one_variant(
    make: Callable[[], Callable[[Any], Tensor]], sets: list[Any], expected: list[Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """What the report says of a variant: its times, why it was skipped, or how it failed."""
    result: dict[str, Any] = {}
    try:
        start = time.perf_counter()
        variant = make()
        result["relative_error"] = errors = relative_errors(variant, sets[0], expected)
        result["first_call_s"] = round(time.perf_counter() - start, 2)
        if not max(errors.values()) < WRONG:  # a NaN is wrong as well
            return {**result, "failed": f"wrong result: relative errors {errors}"}
        return {**result, **measure(variant, sets, options.device, options.effort)}
    except Unavailable as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # a contender that fails is a result of this comparison
        return {**result, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:400]}


def quickest(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Of two rounds of one variant the lower medians; a failure of either stays. Rounds in which the variants take turns
    are for machines whose speed changes meanwhile."""
    if before is None or "forward_ms" not in now:
        return now
    if "forward_ms" not in before:
        return before
    return {**before, **{key: min(before[key], now[key]) for key in ("forward_ms", "backward_ms")}}


def print_row(problem: str, name: str, result: dict[str, Any]) -> None:
    if "forward_ms" not in result:
        print(f"{problem:36} {name:16} {result.get('failed') or result['skipped']}", flush=True)
        return
    print(
        f"{problem:36} {name:16} forward {result['forward_ms']:9.3f} ms  backward {result['backward_ms']:9.3f} ms  "
        f"peak {result['peak_mib']:9.1f} MiB  error {max(result['relative_error'].values()):.1e}  "
        f"first call {result['first_call_s']:.1f} s",
        flush=True,
    )


def slower_than_eager(results: list[dict[str, Any]]) -> list[str]:
    """Where ours loses against plain PyTorch, in either direction."""
    found = []
    for result in results:
        ours, eager = (result["variants"].get(name, {}) for name in (OURS, "eager"))
        for key in ("forward_ms", "backward_ms"):
            if key in ours and key in eager and ours[key] > eager[key]:
                found.append(f"{result['problem']['name']} {key.split('_')[0]}: {ours[key]:.3f} against {eager[key]:.3f} ms")
    return found
