"""EvoAttention of the CUDA backend where a row has at most 128 keys: "cuda sm80 short", or "... wide" for D above 32 without a
bias. They take all of these problems but the forward of a bias that serves one row."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from attention_cases import Case, Problem, make_problem, short_case  # noqa: E402
from attention_run import assert_large_column, assert_replays, assert_same_bits, run, wrong_results  # noqa: E402
from attention_shim import Unsupported  # noqa: E402

NAME, WIDE, PORTABLE = "cuda sm80 short", "cuda sm80 short wide", "cuda sm80"
ALL = (True,) * 4
# Rows and groups that end within a block's range, at its end, or fill several; the number of blocks is a few hundred.
WINDOWS = Case(36_000, torch.bfloat16, 9, 48, 32, 128, 4, 32, "bool", "float", False, "plain", ALL, 0.0)
COLUMN = Case(36_001, torch.bfloat16, 1, 70, 128, 128, 8, 32, "bool", "none", False, "plain", ALL, 0.0)


def compute(shim, case: Case, problem: Problem) -> dict[str, torch.Tensor]:
    one_row = case.bias != "none" and case.rows * (case.batch if case.shared_bias else 1) == 1
    name = WIDE if case.bias == "none" and case.dim > 32 else NAME
    return run(shim, name, case, problem, PORTABLE if one_row else None)


def check(shim, case: Case, problem: Problem | None = None) -> None:
    problem = problem or make_problem(case)
    found = wrong_results(case, problem, compute(shim, case, problem))
    assert not found, f"{case.name()}: " + "; ".join(found)


@pytest.mark.parametrize("seed", range(40_000, 40_260))
def test_random_case(shim, seed: int) -> None:
    check(shim, short_case(seed))


@pytest.mark.parametrize("changes", (
    {}, {"batch": 1, "rows": 1000, "heads": 2}, {"batch": 3, "rows": 500}, {"batch": 200, "rows": 2}, {"batch": 600, "rows": 1},
    {"batch": 20, "rows": 30, "shared_bias": True}, {"heads": 16, "dim": 16}, {"dim": 48}, {"dim": 64, "dtype": torch.float16}))
def test_bias_shared_by_many_rows(shim, changes: dict) -> None:
    check(shim, dataclasses.replace(WINDOWS, **changes))


@pytest.mark.parametrize("case", (WINDOWS, COLUMN), ids=("windows", "column"))
@pytest.mark.parametrize("value", (-1e9, torch.finfo(torch.float32).min))
@pytest.mark.parametrize("hidden_keys", (40, 64, 127))
def test_large_finite_masks(shim, case: Case, value: float, hidden_keys: int) -> None:
    case = dataclasses.replace(case, mask="float", batch=2, rows=3)
    problem = make_problem(case)
    order = torch.rand(problem.mask.shape, device="cuda").argsort(-1)
    problem.mask = torch.where(order < hidden_keys, value, 0.0)
    check(shim, case, problem)


@pytest.mark.parametrize("level", (-400.0, 400.0))
@pytest.mark.parametrize("slope", (0.0, 3.0))
def test_scores_far_from_zero(shim, level: float, slope: float) -> None:
    problem = make_problem(WINDOWS)
    problem.bias = problem.bias + level + slope * torch.arange(128, device="cuda")
    check(shim, WINDOWS, problem)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("case", (WINDOWS, COLUMN), ids=("windows", "column"))
def test_queries_that_see_one_key(shim, case: Case, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, batch=2, rows=3, dtype=dtype)
    problem = make_problem(case)
    problem.mask = torch.zeros_like(problem.mask)
    problem.mask[..., 77] = True
    results = compute(shim, case, problem)
    assert not wrong_results(case, problem, results)
    assert torch.equal(results["out"], problem.v[:, :, 77:78].expand_as(results["out"]))


def test_queries_that_see_no_key(shim) -> None:
    case = dataclasses.replace(WINDOWS, batch=3, rows=4)
    problem = make_problem(case)
    problem.mask[:, 1] = False
    results = compute(shim, case, problem)
    assert not wrong_results(case, problem, results)
    assert (results["lse"][:, 1] == float("inf")).all()
    assert all(results[key][:, 1].eq(0).all() for key in ("out", "dq", "dk", "dv"))


@pytest.mark.parametrize("case", (WINDOWS, COLUMN), ids=("windows", "column"))
def test_every_run_gives_the_same_bits(shim, case: Case) -> None:
    assert_same_bits(lambda problem: compute(shim, case, problem), make_problem(case), times=8)


@pytest.mark.parametrize("case", (WINDOWS, COLUMN), ids=("windows", "column"))
def test_graph_replay_equals_eager(shim, case: Case) -> None:
    fresh = make_problem(dataclasses.replace(case, seed=7))
    assert_replays(lambda problem: compute(shim, case, problem), make_problem(case), fresh)


@pytest.mark.parametrize(("changes", "reason"), (
    ({"keys": 129}, "more than 128 keys"), ({"queries": 33}, "a bias of more than 32 queries"),
    ({"dtype": torch.float32}, "no kernel for float32"), ({"dim": 72}, "head dimension 72"),
    ({"layout": "odd"}, "16 bytes"), ({"scale": -0.2}, "negative"), ({"scale": 1e-9}, "next to 0")))
def test_what_it_leaves_to_others(shim, changes: dict, reason: str) -> None:
    case = dataclasses.replace(WINDOWS, batch=1, rows=2, **changes)
    with pytest.raises(Unsupported, match=reason):
        compute(shim, case, make_problem(case))


def test_the_forward_of_a_bias_for_one_row_is_left_to_others(shim) -> None:
    case = dataclasses.replace(WINDOWS, rows=1)
    with pytest.raises(Unsupported, match="one row to a bias"):
        run(shim, NAME, case, make_problem(case))


def test_more_than_2_31_elements(shim) -> None:
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of free device memory")
    assert_large_column(shim, NAME)
