"""EvoAttention of the CUDA backend on Hopper where a row has 65 to 128 keys and no bias: "cuda sm90a short"."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from attention_cases import Case, Problem, hopper_short_case, make_problem  # noqa: E402
from attention_run import assert_large_column, assert_replays, assert_same_bits, run, wrong_results  # noqa: E402
from attention_shim import Unsupported  # noqa: E402

NAME = "cuda sm90a short"
# A device's few hundred blocks have one or two of these 560 heads of rows each.
COLUMN = Case(36_001, torch.bfloat16, 1, 70, 128, 128, 8, 32, "bool", "none", False, "plain", (True, True, True, False), 0.0)


@pytest.fixture(autouse=True, scope="module")
def hopper(shim) -> None:
    if NAME not in shim.names:
        pytest.skip("built without sm_90a")
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")


def compute(shim, case: Case, problem: Problem) -> dict[str, torch.Tensor]:
    return run(shim, NAME, case, problem)


def check(shim, case: Case, problem: Problem | None = None) -> None:
    problem = problem or make_problem(case)
    found = wrong_results(case, problem, compute(shim, case, problem))
    assert not found, f"{case.name()}: " + "; ".join(found)


@pytest.mark.parametrize("seed", range(60_000, 60_160))
def test_random_case(shim, seed: int) -> None:
    check(shim, hopper_short_case(seed))


@pytest.mark.parametrize("changes", (
    {}, {"rows": 1}, {"rows": 384}, {"batch": 3, "rows": 120}, {"queries": 64, "rows": 300}, {"queries": 300, "rows": 100},
    {"queries": 1000, "rows": 3}, {"heads": 3, "rows": 401}, {"dim": 8, "rows": 200}, {"dtype": torch.float16, "rows": 200}))
def test_blocks_that_walk_over_many_heads(shim, changes: dict) -> None:
    check(shim, dataclasses.replace(COLUMN, **changes))


@pytest.mark.parametrize("value", (-1e9, torch.finfo(torch.float32).min))
@pytest.mark.parametrize("hidden_keys", (40, 64, 127))
def test_large_finite_masks(shim, value: float, hidden_keys: int) -> None:
    case = dataclasses.replace(COLUMN, mask="float", batch=2, rows=3)
    problem = make_problem(case)
    order = torch.rand(problem.mask.shape, device="cuda").argsort(-1)
    problem.mask = torch.where(order < hidden_keys, value, 0.0)
    check(shim, case, problem)


@pytest.mark.parametrize("level", (-400.0, 400.0))
@pytest.mark.parametrize("slope", (0.0, 3.0))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_scores_far_from_zero(shim, level: float, slope: float, dtype: torch.dtype) -> None:
    case = dataclasses.replace(COLUMN, mask="float", rows=5, dtype=dtype)
    problem = make_problem(case)
    problem.mask = (level + slope * torch.arange(128, device="cuda", dtype=torch.float32)).expand_as(problem.mask).contiguous()
    check(shim, case, problem)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("key", (0, 77, 127))
def test_queries_that_see_one_key(shim, dtype: torch.dtype, key: int) -> None:
    case = dataclasses.replace(COLUMN, batch=2, rows=3, dtype=dtype)
    problem = make_problem(case)
    problem.mask = torch.zeros_like(problem.mask)
    problem.mask[..., key] = True
    results = compute(shim, case, problem)
    assert not wrong_results(case, problem, results)
    assert torch.equal(results["out"], problem.v[:, :, key:key + 1].expand_as(results["out"]))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("visible_keys", (1, 2, 90, 128))
def test_scores_of_every_size_side_by_side(shim, dtype: torch.dtype, visible_keys: int) -> None:
    """Sums of exponentials past either end of float32 next to ordinary ones, and rows that see no key."""
    wanted = visible_keys > 1  # of one key dK should be 0: what rounding leaves is of the size of these q
    case = dataclasses.replace(COLUMN, batch=2, rows=6, queries=190, dtype=dtype, gradients=(wanted, wanted, wanted, False))
    problem = make_problem(case)
    problem.q[:, :, ::3] *= 40
    problem.q[:, :, ::5] *= 12
    numbers = torch.Generator(device="cuda").manual_seed(case.seed)
    problem.mask = torch.rand(problem.mask.shape, generator=numbers, device="cuda").argsort(-1) < visible_keys
    problem.mask[:, 1] = False
    results = compute(shim, case, problem)
    assert not wrong_results(case, problem, results)
    assert results["out"][:, 1].eq(0).all()
    if visible_keys == 1:
        seen = torch.where(problem.mask[:, :, 0, 0, :, None, None], problem.v, 0).sum(2, keepdim=True)
        assert torch.equal(results["out"], seen.expand_as(results["out"]))


def test_queries_that_see_no_key(shim) -> None:
    case = dataclasses.replace(COLUMN, batch=3, rows=4)
    problem = make_problem(case)
    problem.mask[:, 1] = False
    results = compute(shim, case, problem)
    assert not wrong_results(case, problem, results)
    assert (results["lse"][:, 1] == float("inf")).all()
    assert all(results[key][:, 1].eq(0).all() for key in ("out", "dq", "dk", "dv"))


@pytest.mark.parametrize("factor", (1, 12, 500))
def test_the_log_sum_exp(shim, factor: int) -> None:
    case = dataclasses.replace(COLUMN, queries=100, keys=90, mask="float", rows=9)
    problem = make_problem(case)
    problem.q *= factor
    scores = torch.einsum("bsihd,bsjhd->bshij", problem.q.double() * problem.scale, problem.k.double()) + problem.mask.double()
    expected = scores.logsumexp(-1)
    expected[expected == float("-inf")] = float("inf")
    torch.testing.assert_close(compute(shim, case, problem)["lse"].double(), expected, rtol=1e-5, atol=1e-5)


# With 300 rows a device's blocks have so many heads of rows that the forward deals out the last ones as it goes.
@pytest.mark.parametrize("rows", (70, 300))
def test_every_run_gives_the_same_bits(shim, rows: int) -> None:
    case = dataclasses.replace(COLUMN, rows=rows)
    assert_same_bits(lambda problem: compute(shim, case, problem), make_problem(case), times=20)


@pytest.mark.parametrize("rows", (70, 300))
def test_graph_replay_equals_eager(shim, rows: int) -> None:
    case = dataclasses.replace(COLUMN, rows=rows)
    fresh = make_problem(dataclasses.replace(case, seed=7))
    assert_replays(lambda problem: compute(shim, case, problem), make_problem(case), fresh)


@pytest.mark.parametrize(("changes", "reason"), (
    ({"keys": 129}, "more than 128 keys"), ({"keys": 64}, "fewer than"), ({"queries": 32}, "fewer than"),
    ({"bias": "float"}, "a bias"),
    ({"dtype": torch.float32}, "no kernel for float32"), ({"dim": 40}, "head dimension 40"), ({"layout": "odd"}, "16 bytes"),
    ({"scale": -0.2}, "negative"), ({"scale": 1e-9}, "next to 0")))
def test_what_it_leaves_to_others(shim, changes: dict, reason: str) -> None:
    case = dataclasses.replace(COLUMN, batch=1, rows=2, **changes)
    with pytest.raises(Unsupported, match=reason):
        compute(shim, case, make_problem(case))


def test_more_than_2_31_elements(shim) -> None:
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of free device memory")
    assert_large_column(shim, NAME)
