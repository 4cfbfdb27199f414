"""Calls of the shim that check what surrounds the results: poisoned outputs, untouched neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from attention_cases import Case, Problem, allocate, plain_result, violations


def run(shim, name: str, case: Case, problem: Problem, forward: str | None = None) -> dict[str, torch.Tensor]:
    """Forward and the case's gradients, every output allocated in the case's layout and poisoned with NaN.

    `forward` names the implementation of the forward where it is not `name`.
    """
    p = problem
    device = p.q.device

    def output(like: torch.Tensor) -> torch.Tensor:
        return allocate(case, like.shape[2], True, None, device)

    out = output(p.q)
    lse = torch.full((case.batch, case.rows, case.heads, case.queries), float("nan"), device=device)
    shim.forward(forward or name, p.q, p.k, p.v, p.mask, p.bias, out, lse, p.scale)
    wants = case.gradients
    dq, dk, dv = (output(x) if want else None for x, want in zip((p.q, p.k, p.v), wants))
    dbias = None
    if p.bias is not None and wants[3]:
        dbias = torch.full(p.bias.shape, float("nan"), device=device)
    results = {"out": out, "lse": lse}
    if any(x is not None for x in (dq, dk, dv, dbias)):
        shim.backward(name, p.q, p.k, p.v, p.mask, p.bias, out, lse, p.dout, dq, dk, dv, dbias, p.scale)
        results |= {n: x for n, x in zip(("dq", "dk", "dv", "dbias"), (dq, dk, dv, dbias)) if x is not None}
    return results


def stray_writes(results: dict[str, torch.Tensor]) -> list[str]:
    """Outputs of which something outside was written: their storage holds more numbers than they have elements."""
    found = []
    for name, x in results.items():
        storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
        written = int((~storage.isnan()).sum())
        if written != x.numel():
            found.append(f"{name}: {written} elements of its storage written, {x.numel()} expected")
    return found


def wrong_results(case: Case, problem: Problem, results: dict[str, torch.Tensor]) -> list[str]:
    """How the results of run() break the rule that they are held to, and what was written outside of them."""
    reference = plain_result(problem, torch.float64)
    plain = plain_result(problem, case.dtype)
    found = stray_writes(results)
    for key, value in results.items():
        if key != "lse":
            found += violations(key, value, plain[key], reference[key], case.dtype)
    return found


Compute = Callable[[Problem], dict[str, torch.Tensor]]


def assert_same_bits(compute: Compute, problem: Problem, times: int) -> None:
    """`times` more calls give what the first gives, bit for bit."""
    first = compute(problem)
    for _ in range(times):
        again = compute(problem)
        for key, value in first.items():
            assert torch.equal(value.contiguous().view(torch.uint8), again[key].contiguous().view(torch.uint8)), key


def assert_replays(compute: Compute, problem: Problem, fresh: Problem) -> None:
    """A graph that was captured with `problem` gives what a call gives, once its operands hold what those of `fresh` do."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        compute(problem)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = compute(problem)
    for field in dataclasses.fields(problem):
        if isinstance(getattr(problem, field.name), torch.Tensor):
            getattr(problem, field.name).copy_(getattr(fresh, field.name))
    graph.replay()
    torch.cuda.synchronize()
    for key, value in compute(fresh).items():
        assert torch.equal(value, captured[key]), key
