"""EvoAttention of the CUDA backend for small grids ("cuda sm80 spread"), which takes all of these problems."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

import attention_run  # noqa: E402
from attention_cases import Case, Problem, few_query_case, make_problem, spread_case, strip_case, tile_case, tiny_case  # noqa: E402
from attention_run import assert_replays, assert_same_bits, wrong_results  # noqa: E402
from attention_shim import Unsupported  # noqa: E402

NAME, WINDOWS = "cuda sm80 spread", "cuda sm80 spread windows"
ALL = (True,) * 4
# Single attention with pair bias; the same with a bias whose queries are fastest; keys in two rounds; two rows that share a bias, in
# rounds; four rows that do, of few keys; six of long vectors.
SINGLE = Case(50_003, torch.bfloat16, 1, 1, 384, 384, 16, 24, "bool", "float", False, "plain", ALL, 0.0)
TURNED = dataclasses.replace(SINGLE, seed=50_000)
ROUNDS = Case(50_001, torch.bfloat16, 1, 1, 389, 777, 3, 48, "bool", "float", False, "packed", ALL, 0.0)
ROWS = Case(50_002, torch.float16, 2, 1, 200, 449, 2, 32, "float", "storage", True, "plain", ALL, 0.0)
FEW_KEYS = Case(50_004, torch.bfloat16, 4, 1, 45, 45, 3, 48, "bool", "float", True, "plain", ALL, 0.0)
LONG = Case(50_006, torch.bfloat16, 3, 2, 50, 331, 1, 128, "bool", "float", True, "plain", ALL, 0.0)
# Rows of few keys of which a block walks over several; long vectors in many tiles.
WALK = Case(50_008, torch.bfloat16, 1, 170, 64, 64, 4, 32, "bool", "float", False, "plain", ALL, 0.0)
TILES = Case(50_009, torch.bfloat16, 1, 1, 300, 389, 5, 96, "bool", "float", False, "plain", ALL, 0.0)
CASES = {"single": SINGLE, "turned": TURNED, "rounds": ROUNDS, "rows": ROWS, "few_keys": FEW_KEYS, "long": LONG, "walk": WALK,
         "tiles": TILES}
FIXED = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def run(shim, case: Case, problem: Problem) -> dict[str, torch.Tensor]:
    """Forward and backward of this path; the portable forward where this one's refuses: a device may have too few multiprocessors for
    it, and only the backward takes any shared bias, and more scores."""
    reasons = ("multiprocessor", "does not lie on vectors", "a bias each", "at one distance", " scores")
    try:
        return attention_run.run(shim, NAME, case, problem)
    except Unsupported as refusal:
        if not any(reason in str(refusal) for reason in reasons):
            raise
    return attention_run.run(shim, NAME, case, problem, forward="cuda sm80")


def check(shim, case: Case, problem: Problem | None = None) -> None:
    problem = problem or make_problem(case)
    found = wrong_results(case, problem, run(shim, case, problem))
    assert not found, f"{case.name()}: " + "; ".join(found)


@pytest.mark.parametrize("seed", range(50_100, 50_400))
def test_random_case(shim, seed: int) -> None:
    check(shim, spread_case(seed))


@pytest.mark.parametrize("seed", range(52_000, 52_200))
def test_random_tiny_case(shim, seed: int) -> None:
    check(shim, tiny_case(seed))


@pytest.mark.parametrize("seed", range(53_000, 53_150))
def test_random_case_of_the_backward_in_tiles(shim, seed: int) -> None:
    check(shim, tile_case(seed))


@pytest.mark.parametrize("seed", range(54_000, 54_080))
def test_random_case_of_few_queries(shim, seed: int) -> None:
    check(shim, few_query_case(seed))


@pytest.mark.parametrize("seed", range(51_001, 51_061))
def test_random_case_of_the_backward_in_strips(shim, seed: int) -> None:
    check(shim, strip_case(seed))


@FIXED
def test_fixed_case(shim, case: Case) -> None:
    check(shim, case)


def test_bias_with_heads_fastest(shim) -> None:
    """What a linear layer over the pair tensor gives before it is made contiguous in the keys."""
    problem = make_problem(SINGLE)
    problem.bias = problem.bias.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    check(shim, SINGLE, problem)


@FIXED
@pytest.mark.parametrize("value", (-1e9, torch.finfo(torch.float32).min))
@pytest.mark.parametrize("hidden_keys", (40, 200, 383))
def test_large_finite_masks(shim, case: Case, value: float, hidden_keys: int) -> None:
    """A warp may see nothing but keys with such a term; some key is left."""
    case = dataclasses.replace(case, mask="float")
    problem = make_problem(case)
    order = torch.arange(case.keys, device="cuda").flip(0).expand(problem.mask.shape)
    problem.mask = torch.where(order >= max(1, case.keys - hidden_keys), value, 0.0)
    check(shim, case, problem)


@FIXED
@pytest.mark.parametrize("level", (-400.0, 400.0))
@pytest.mark.parametrize("slope", (0.0, 2.0))
def test_scores_far_from_zero(shim, case: Case, level: float, slope: float) -> None:
    problem = make_problem(dataclasses.replace(case, bias="float"))
    problem.bias = problem.bias + level + slope * torch.arange(case.keys, device="cuda")
    check(shim, dataclasses.replace(case, bias="float"), problem)


@FIXED
def test_queries_that_see_no_key(shim, case: Case) -> None:
    case = dataclasses.replace(case, mask="bool", batch=2)
    problem = make_problem(case)
    problem.mask[1] = False
    results = run(shim, case, problem)
    assert not wrong_results(case, problem, results)
    assert (results["lse"][1] == float("inf")).all()
    assert all(results[key][1].eq(0).all() for key in ("out", "dq", "dk", "dv"))


@FIXED
def test_every_run_gives_the_same_bits(shim, case: Case) -> None:
    assert_same_bits(lambda problem: run(shim, case, problem), make_problem(case), times=8)


@FIXED
def test_graph_replay_equals_eager(shim, case: Case) -> None:
    fresh = make_problem(dataclasses.replace(case, seed=case.seed + 5))  # the same strides
    assert_replays(lambda problem: run(shim, case, problem), make_problem(case), fresh)


@pytest.mark.parametrize(("changes", "reason"), (
    ({"rows": 53}, "more than 1048576 scores of a bias"), ({"rows": 27, "keys": 99}, "more than 524288 scores of a bias"),
    ({"rows": 42, "keys": 64}, "more than 524288 scores of a bias"), ({"rows": 3, "keys": 99}, "does not lie on vectors"),
    ({"dtype": torch.float32}, "no kernel for float32"),
    ({"dim": 136}, "no kernel for bfloat16 with head dimension 136"), ({"layout": "odd"}, "16 bytes"),
    ({"heads": 42, "queries": 800, "keys": 64}, "more than 2097152 scores of few keys"),
    ({"heads": 100, "queries": 1001, "dim": 96}, "more than 10000000 scores of long vectors"),
    ({"heads": 1000}, "one block for each multiprocessor"), ({"heads": 4001}, "more than 40000000 scores"),
    ({"heads": 251, "bias": "none"}, "2500000 scores without a bias"),
    ({"heads": 53, "bias": "none", "dim": 48}, "524288 scores without a bias"), ({"batch": 2, "rows": 2}, "a bias each")))
def test_what_it_leaves_to_others(shim, changes: dict, reason: str) -> None:
    case = dataclasses.replace(SINGLE, **{"queries": 100, "keys": 100, "heads": 2} | changes)
    with pytest.raises(Unsupported, match=reason):
        attention_run.run(shim, NAME, case, make_problem(case))


def test_backwards_of_many_scores_are_for_others(shim) -> None:
    """The tiles take 2^25 scores of at most 64 keys, and 2^20 of more keys and short vectors where more than two rows share a bias; what is
    said of more is the limit of the other kernels."""
    for changes, reason in (({"rows": 1025, "heads": 8}, "more than 524288 scores"),
                            ({"rows": 200, "keys": 128}, "more than 1048576 scores")):
        case = dataclasses.replace(WALK, **changes)
        with pytest.raises(Unsupported, match=reason):
            attention_run.run(shim, NAME, case, make_problem(case), forward="cuda sm80")


def test_few_keys_without_a_bias_are_for_others(shim) -> None:
    case = dataclasses.replace(FEW_KEYS, bias="none")
    with pytest.raises(Unsupported, match="no bias and at most 64 keys"):
        attention_run.run(shim, NAME, case, make_problem(case), forward="cuda sm80")


@pytest.mark.parametrize(("changes", "takes"), (({}, True), ({"rows": 1}, False), ({"queries": 33}, False), ({"keys": 129}, False),
                                                ({"rows": 65, "queries": 30}, False), ({"bias": "none"}, False)))
def test_few_windows_that_share_a_bias(shim, changes: dict, takes: bool) -> None:
    """They have an entry of their own, before the path for short keys."""
    case = dataclasses.replace(Case(50_007, torch.bfloat16, 1, 10, 32, 128, 4, 32, "bool", "float", False, "plain", ALL, 0.0), **changes)
    problem = make_problem(case)
    assert shim.names.index(WINDOWS) < shim.names.index("cuda sm80 short") < shim.names.index(NAME)
    if takes:
        assert not wrong_results(case, problem, attention_run.run(shim, WINDOWS, case, problem))
        return
    for forward in (WINDOWS, "cuda sm80"):
        with pytest.raises(Unsupported, match="no few windows"):
            attention_run.run(shim, WINDOWS, case, problem, forward=forward)
