"""EvoAttention of the CUDA backend against float64, and what else it promises: repeatable, capturable, 64-bit."""

from __future__ import annotations

import dataclasses
import threading

import pytest

torch = pytest.importorskip("torch")

from attention_cases import Case, Problem, hopper_case, make_problem, plain_result, random_case, violations  # noqa: E402
from attention_run import assert_replays, assert_same_bits, run, wrong_results  # noqa: E402
from attention_shim import Unsupported  # noqa: E402

PORTABLE, HOPPER = "cuda sm80", "cuda sm90a"
IMPLEMENTATIONS = (PORTABLE, HOPPER)


def attempt(shim, name: str, case: Case, problem: Problem, forward: str | None = None) -> dict[str, torch.Tensor]:
    """run(), or a skipped test with the reason where the Hopper path refuses; the portable one takes everything."""
    if name not in shim.names:
        pytest.skip(f"{name} is not in this build: MEGAFOLD_CUDA_ARCHS lacks 90a")
    try:
        return run(shim, name, case, problem, forward)
    except Unsupported as refusal:
        if name == PORTABLE:
            raise
        pytest.skip(str(refusal))


def check(shim, name: str, case: Case, problem: Problem | None = None, forward: str | None = None) -> None:
    problem = problem or make_problem(case)
    found = wrong_results(case, problem, attempt(shim, name, case, problem, forward))
    assert not found, f"{name} {case.name()}: " + "; ".join(found)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(520))
def test_random_case(shim, name: str, seed: int) -> None:
    check(shim, name, random_case(seed))


@pytest.mark.parametrize("seed", range(30_000, 30_520))
def test_random_case_of_the_hopper_path(shim, seed: int) -> None:
    check(shim, HOPPER, hopper_case(seed))


@pytest.mark.parametrize("seed", range(31_000, 31_012))
def test_one_row_to_a_bias(shim, seed: int) -> None:
    """The Hopper path leaves such a forward to the portable one and takes the backward."""
    case = dataclasses.replace(hopper_case(seed), batch=2, rows=1, bias="float", shared_bias=False,
                               gradients=(True,) * 4)
    check(shim, HOPPER, case, forward=PORTABLE)


def test_tf32_only_where_allowed(shim) -> None:
    """float32 products of rounded operands are off by a few 1e-4, and by less than 1e-5 when that is not allowed."""
    case = Case(36_000, torch.float32, 1, 6, 150, 150, 2, 32, "bool", "float", False, "plain", (True,) * 4, 0.0)
    problem = make_problem(case)
    reference = plain_result(problem, torch.float64)
    shim.allow_tf32 = True
    try:
        rounded = run(shim, PORTABLE, case, problem)
    finally:
        shim.allow_tf32 = False
    exact = run(shim, PORTABLE, case, problem)
    for key, right in reference.items():
        error = ((rounded[key].double() - right).norm() / right.norm()).item()
        assert 2e-5 < error < 3e-3, f"{key}: {error:.1e}"
        assert (exact[key].double() - right).norm() <= 1e-5 * right.norm(), key


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", (-1e9, torch.finfo(torch.float32).min))
@pytest.mark.parametrize("seed", range(32_000, 32_006))
def test_large_finite_masks(shim, name: str, value: float, seed: int) -> None:
    """What models write for -inf. Keys come and go along a row, so a running maximum starts at such a value."""
    dtype = torch.float16 if seed % 3 == 0 else torch.bfloat16
    case = dataclasses.replace(hopper_case(seed), mask="float", dtype=dtype, scale=0.0)
    problem = make_problem(case)
    generator = torch.Generator(device="cuda").manual_seed(seed)
    hidden = torch.rand(problem.mask.shape, generator=generator, device="cuda") < 0.3
    if seed % 2 == 0:
        hidden[..., : case.keys // 2] = True
    hidden[..., -1] = False
    problem.mask = torch.where(hidden, value, 0.0)
    check(shim, name, case, problem)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("level", (-400.0, 400.0))
def test_scores_far_from_zero(shim, name: str, level: float) -> None:
    """A bias of one sign, and one that rises and falls along the keys by as much."""
    for slope in (0.0, level / 200):
        case = Case(33_000, torch.bfloat16, 1, 5, 200, 200, 2, 32, "bool", "float", False, "plain", (True,) * 4, 0.0)
        problem = make_problem(case)
        problem.bias = problem.bias + level + slope * torch.arange(200, device="cuda")
        check(shim, name, case, problem)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", (389, 1023))
def test_long_rows(shim, name: str, length: int) -> None:
    check(shim, name, Case(7000 + length, torch.bfloat16, 1, 5, length, length, 4, 32, "bool", "float", False,
                           "transposed", (True,) * 4, 0.0))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(9000, 9024))
def test_every_run_gives_the_same_bits(shim, name: str, seed: int) -> None:
    make = random_case if name == PORTABLE else hopper_case
    case = dataclasses.replace(make(seed), gradients=(True,) * 4)
    assert_same_bits(lambda problem: attempt(shim, name, case, problem), make_problem(case), times=5)


@pytest.mark.parametrize("rows", (5, 129))
def test_rows_of_a_forward_item(shim, rows: int) -> None:
    """Items of the forward have two rows where three would leave multiprocessors idle."""
    check(shim, HOPPER, Case(37_000, torch.bfloat16, 1, rows, 200, 130, 3, 32, "bool", "float", False, "plain",
                             (False,) * 4, 0.0))


@pytest.mark.parametrize(("rows", "heads", "dim"), [(128, 8, 32), (96, 4, 32), (40, 3, 48)])
def test_items_whose_shifts_change(shim, rows: int, heads: int, dim: int) -> None:
    """Many work items a block, and scores so far apart that hundreds of them fit a query's shift again."""
    case = Case(38_000 + dim, torch.bfloat16, 1, rows, 384, 384, heads, dim, "bool", "float", False, "plain", (False,) * 4, 0.5)
    problem = make_problem(case)
    check(shim, HOPPER, case, problem)
    assert_same_bits(lambda problem: run(shim, HOPPER, case, problem), problem, times=8)


@pytest.mark.parametrize("which", ("one query", "one head", "one row", "all"))
@pytest.mark.parametrize("dim", (32, 48, 64))
def test_items_that_are_done_again(shim, which: str, dim: int) -> None:
    """bfloat16's exponentials are of the scores as they are; an item whose sums leave float32's safe range comes again."""
    case = Case(39_000 + dim, torch.bfloat16, 1, 90, 300, 200, 4, dim, "bool", "float", False, "plain", (True,) * 4, 0.0)
    problem = make_problem(case)
    if which == "one query":
        problem.bias[0, 0, 1, 257] += 120.0
    elif which == "one head":
        problem.bias[:, :, 2] -= 150.0
    elif which == "one row":
        problem.q[:, 7] *= 20.0
    else:
        problem.bias += 100.0
    check(shim, HOPPER, case, problem)
    assert_same_bits(lambda problem: run(shim, HOPPER, case, problem), problem, times=4)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize(("keys", "dim"), [(260, 64), (448, 64), (300, 40), (390, 40), (700, 48), (400, 32), (1000, 32), (1100, 56)])
def test_sums_over_a_cluster(shim, dtype: torch.dtype, keys: int, dim: int) -> None:
    """dQ of rows that follow one another through two to five blocks, some with fewer keys, which wait for the others."""
    case = Case(34_000 + keys, dtype, 2, 30, 150, keys, 2, dim, "bool", "float", False, "plain", (True,) * 4, 0.0)
    problem = make_problem(case)
    check(shim, HOPPER, case, problem)
    assert_same_bits(lambda problem: run(shim, HOPPER, case, problem), problem, times=8)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_thread_that_has_not_used_the_device(shim, name: str) -> None:
    case = Case(35_000, torch.bfloat16, 1, 8, 130, 130, 2, 32, "bool", "float", False, "plain", (True,) * 4, 0.0)
    problem = make_problem(case)
    expected = attempt(shim, name, case, problem)
    fresh = {}
    thread = threading.Thread(target=lambda: fresh.update(run(shim, name, case, problem)))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert expected.keys() == fresh.keys()
    assert all(torch.equal(expected[key], fresh[key]) for key in expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_graph_replay_equals_eager(shim, name: str) -> None:
    case = Case(5, torch.bfloat16, 1, 97, 97, 97, 4, 32, "bool", "float", False, "plain", (True,) * 4, 0.0)
    fresh = make_problem(dataclasses.replace(case, seed=6))
    assert_replays(lambda problem: attempt(shim, name, case, problem), make_problem(case), fresh)


@pytest.mark.parametrize(("name", "n", "dim"), [(PORTABLE, 64, 128), (HOPPER, 128, 64)])
def test_more_than_2_31_elements(shim, name: str, n: int, dim: int) -> None:
    rows, heads = 65_600, 4
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of free device memory")
    shape = (1, rows, n, heads, dim)
    assert rows * n * heads * dim > 2**31
    q, k, v, dout = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(4))
    out, dq, dk, dv = (torch.full_like(q, float("nan")) for _ in range(4))
    lse = torch.full((1, rows, heads, n), float("nan"), device="cuda")
    scale = dim**-0.5
    if name not in shim.names:
        pytest.skip(f"{name} is not in this build: MEGAFOLD_CUDA_ARCHS lacks 90a")
    try:
        shim.forward(name, q, k, v, None, None, out, lse, scale)
    except Unsupported as refusal:
        if name == PORTABLE:
            raise
        pytest.skip(str(refusal))
    shim.backward(name, q, k, v, None, None, out, lse, dout, dq, dk, dv, None, scale)
    for rows_seen in (slice(0, 8), slice(rows // 2, rows // 2 + 8), slice(rows - 8, rows)):
        part = [x[:, rows_seen] for x in (q, k, v)]
        problem = Problem(*part, None, None, dout[:, rows_seen], scale)
        reference, plain = plain_result(problem, torch.float64), plain_result(problem, torch.bfloat16)
        for key, value in {"out": out, "dq": dq, "dk": dk, "dv": dv}.items():
            assert not violations(key, value[:, rows_seen], plain[key], reference[key], torch.bfloat16)
