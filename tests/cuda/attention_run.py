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


def assert_large_column(shim, name: str) -> None:
    """Rows of 128 keys without a bias, more than 2^31 elements a tensor: the first, the middle and the last are right. Takes 48 GiB."""
    rows, n, heads, dim = 131_100, 128, 4, 32
    assert rows * n * heads * dim > 2**31
    q, k, v, dout = (torch.empty((1, rows, n, heads, dim), dtype=torch.bfloat16, device="cuda").normal_() for _ in range(4))
    out, dq, dk, dv = (torch.full_like(q, float("nan")) for _ in range(4))
    lse = torch.full((1, rows, heads, n), float("nan"), device="cuda")
    shim.forward(name, q, k, v, None, None, out, lse, dim**-0.5)
    shim.backward(name, q, k, v, None, None, out, lse, dout, dq, dk, dv, None, dim**-0.5)
    for seen in (slice(0, 8), slice(rows // 2, rows // 2 + 8), slice(rows - 8, rows)):
        problem = Problem(*(x[:, seen] for x in (q, k, v)), None, None, dout[:, seen], dim**-0.5)
        reference, plain = plain_result(problem, torch.float64), plain_result(problem, torch.bfloat16)
        for key, value in {"out": out, "dq": dq, "dk": dk, "dv": dv}.items():
            assert not violations(key, value[:, seen], plain[key], reference[key], torch.bfloat16)
