"""EvoAttention of the CUDA backend against float64, and what else it promises: repeatable, capturable, 64-bit."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from attention_cases import Case, make_problem, plain_result, random_case, violations  # noqa: E402
from attention_run import run, stray_writes  # noqa: E402

IMPLEMENTATIONS = ("cuda sm80",)
VARIANTS = ("cuda sm80 shared", "cuda sm80 single", "cuda sm80 window")  # taken only where a tuned choice names them


def check(shim, name: str, case: Case) -> None:
    problem = make_problem(case)
    results = run(shim, name, case, problem)
    reference = plain_result(problem, torch.float64)
    plain = plain_result(problem, case.dtype)
    found = stray_writes(results)
    for key, value in results.items():
        if key != "lse":
            found += violations(key, value, plain[key], reference[key], case.dtype)
    assert not found, f"{name} {case.name()}: " + "; ".join(found)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(520))
def test_random_case(shim, name: str, seed: int) -> None:
    check(shim, name, random_case(seed))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seed", range(30_000, 30_040))
def test_random_case_of_a_variant(shim, name: str, seed: int) -> None:
    case = random_case(seed)
    half = torch.bfloat16 if case.dtype == torch.float32 else case.dtype  # float32 and long vectors have one tiling
    check(shim, name, dataclasses.replace(case, dtype=half, dim=min(case.dim, 64)))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", (389, 1023))
def test_long_rows(shim, name: str, length: int) -> None:
    check(shim, name, Case(7000 + length, torch.bfloat16, 1, 5, length, length, 4, 32, "bool", "float", False,
                           "transposed", (True,) * 4, 0.0))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(9000, 9024))
def test_backward_is_bitwise_repeatable(shim, name: str, seed: int) -> None:
    case = dataclasses.replace(random_case(seed), gradients=(True,) * 4)
    problem = make_problem(case)
    first = run(shim, name, case, problem)
    for _ in range(3):
        again = run(shim, name, case, problem)
        for key, value in first.items():
            assert torch.equal(value.contiguous().view(torch.uint8), again[key].contiguous().view(torch.uint8)), key


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_graph_replay_equals_eager(shim, name: str) -> None:
    case = Case(5, torch.bfloat16, 1, 97, 97, 97, 4, 32, "bool", "float", False, "plain", (True,) * 4, 0.0)
    problem = make_problem(case)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(shim, name, case, problem)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(shim, name, case, problem)
    fresh = make_problem(dataclasses.replace(case, seed=6))
    for field in dataclasses.fields(problem):
        if isinstance(getattr(problem, field.name), torch.Tensor):
            getattr(problem, field.name).copy_(getattr(fresh, field.name))
    graph.replay()
    torch.cuda.synchronize()
    for key, value in run(shim, name, case, fresh).items():
        assert torch.equal(value, captured[key]), key


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_more_than_2_31_elements(shim, name: str) -> None:
    rows, n, heads, dim = 65_600, 64, 4, 128
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of free device memory")
    shape = (1, rows, n, heads, dim)
    assert rows * n * heads * dim > 2**31
    q, k, v, dout = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(4))
    out, dq, dk, dv = (torch.full_like(q, float("nan")) for _ in range(4))
    lse = torch.full((1, rows, heads, n), float("nan"), device="cuda")
    scale = dim**-0.5
    shim.forward(name, q, k, v, None, None, out, lse, scale)
    shim.backward(name, q, k, v, None, None, out, lse, dout, dq, dk, dv, None, scale)
    from attention_cases import Problem

    for rows_seen in (slice(0, 8), slice(rows // 2, rows // 2 + 8), slice(rows - 8, rows)):
        part = [x[:, rows_seen] for x in (q, k, v)]
        problem = Problem(*part, None, None, dout[:, rows_seen], scale)
        reference, plain = plain_result(problem, torch.float64), plain_result(problem, torch.bfloat16)
        for key, value in {"out": out, "dq": dq, "dk": dk, "dv": dv}.items():
            assert not violations(key, value[:, rows_seen], plain[key], reference[key], torch.bfloat16)
