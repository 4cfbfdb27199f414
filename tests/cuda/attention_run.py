"""Calls of the shim that check what surrounds the results: poisoned outputs, untouched neighbours."""

from __future__ import annotations

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
