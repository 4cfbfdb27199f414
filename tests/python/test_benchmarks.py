"""The benchmark programs: what they accept as right, what they report, and that tables show what was measured."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks/ops"
sys.path.insert(0, str(FOLDER))
evo_attention, problems, table = (importlib.import_module(name) for name in ("evo_attention", "problems", "table"))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, check=False,
                          timeout=250, env=environment)


def test_a_quick_run_writes_times_errors_and_a_picture(tmp_path: Path) -> None:
    output = tmp_path / "results/evo.json"
    variants = ("megafold", "eager", "sdpa", "flex", "cuequivariance", "trifast", "triton-megafold")
    result = run(FOLDER / "evo_attention.py", "--device", "cpu", "--quick", "--output", output, "--variants", *variants)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(output.read_text())
    assert len(report["results"]) == len(problems.SETS["quick"])
    for entry in report["results"]:
        assert set(entry["variants"]) == set(variants)
        for name in ("megafold", "eager", "sdpa"):
            measured = entry["variants"][name]
            assert measured["forward_ms"] > 0 and measured["backward_ms"] > 0 and measured["peak_mib"] >= 0
            assert set(measured["relative_error"]) >= {"out", "dq", "dk", "dv"}
            assert max(measured["relative_error"].values()) < 1e-5
        assert "CPU" in entry["variants"]["flex"]["skipped"]
    environment = report["environment"]
    assert environment["device"] and environment["commit"] and environment["packages"]["torch"] == torch.__version__
    assert "--quick" in environment["command"]
    assert output.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in output.parent.iterdir()) == ["evo.json", "evo.png"]


def test_the_dense_operators_are_measured_beside_eager(tmp_path: Path) -> None:
    output = tmp_path / "dense.json"
    result = run(FOLDER / "dense.py", "--quick", "--output", output)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(output.read_text())
    names = [entry["problem"]["name"].split()[0] for entry in report["results"]]
    assert names == ["layer_norm_linear"] * 2 + ["transition"] * 2 + ["triangle_multiplication"] * 2
    for entry in report["results"]:
        assert entry["results_mib"] > 0
        for found in (entry["variants"][name] for name in ("megafold", "eager")):
            assert found["forward_ms"] > 0 and found["backward_ms"] > 0 and found["peak_mib"] >= 0
            assert set(found["relative_error"]) >= {"out", "dx"} and max(found["relative_error"].values()) < 1e-5
    lines = table.table(report, "x.json").splitlines()
    assert "1 threads" in lines[0] and lines[2] == "| operator | MegaFold | eager | peak MiB, ours / eager (results alone) |"
    assert lines[4].startswith("| layer_norm_linear M=23 K=5 C=1 | ") and len(lines) == 4 + 6


@pytest.mark.parametrize("p", problems.SETS["quick"], ids=lambda p: p.name)
def test_the_reference_is_autograds_in_float64(p: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "REFERENCE_SCORES", 2 * p.Nq * p.Nk * p.H)  # several pieces
    x = problems.make_inputs(p, "cpu", torch.float32, torch.float32, 3)
    q, k, v, bias = (None if t is None else t.detach().double().requires_grad_() for t in (x.q, x.k, x.v, x.bias))
    scores = torch.einsum("bsihd,bsjhd->bshij", q, k) * p.D**-0.5
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~x.keep, float("-inf")).softmax(-1)
    out = torch.einsum("bshij,bsjhd->bsihd", weights, v)
    leaves = [t for t in (q, k, v, bias) if t is not None]
    expected = [out, *torch.autograd.grad(out, leaves, x.dout.double())]
    for got, right in zip(problems.reference(x), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-11, atol=1e-11)


def options(**changes: Any) -> argparse.Namespace:
    values = {"device": "cpu", "dtype": torch.float32, "bias_dtype": torch.float32, "effort": evo_attention.Effort(2, 2, 0), "rounds": 2}
    return argparse.Namespace(**(values | changes))


def test_a_wrong_variant_is_not_timed_and_a_broken_one_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_wrong() -> Any:
        return lambda x: evo_attention.VARIANTS["eager"]()(x) * 1.1

    def broken() -> Any:
        def call(x: Any) -> Any:
            raise ValueError("no kernel\nfor this")

        return call

    monkeypatch.setitem(evo_attention.VARIANTS, "wrong", slightly_wrong)
    monkeypatch.setitem(evo_attention.VARIANTS, "broken", broken)
    monkeypatch.setitem(evo_attention.VARIANTS, "nan", lambda: lambda x: x.q * float("nan") * x.k.sum() * x.v.sum() * x.bias.sum())
    problem = problems.SETS["quick"][0]
    found = evo_attention.run_problem(problem, ["wrong", "broken", "nan", "eager"], math.inf, options())["variants"]
    assert found["wrong"]["failed"].startswith("wrong result") and "forward_ms" not in found["wrong"]
    assert found["broken"]["failed"] == "ValueError: no kernel for this"
    assert found["nan"]["failed"].startswith("wrong result")
    assert found["eager"]["forward_ms"] > 0
    late = evo_attention.run_problem(problem, ["eager"], -math.inf, options())["variants"]
    assert "--budget" in late["eager"]["skipped"]


def peer_triangle_attention(q: Any, k: Any, v: Any, bias: Any, mask: Any = None) -> Any:
    """What cuequivariance documents: q [B, N, H, Q, D], bias [B, 1, H, Q, K], mask [B, N, 1, 1, K], true = attend."""
    batch, rows, heads, queries, width = q.shape
    keys = k.shape[3]
    assert bias.shape == (batch, 1, heads, queries, keys) and mask.shape == (batch, rows, 1, 1, keys)
    scores = q @ k.mT * width**-0.5 + bias
    return scores.masked_fill(~mask, -1e9).softmax(-1) @ v


def peer_trifast(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
    """What trifast documents: q [B, H, N, N, D] (rows, then positions), bias [B, H, N, N], mask [B, N, N], true = hidden."""
    assert bias.shape == q.shape[:1] + q.shape[1:2] + q.shape[2:4] and mask.shape == (q.shape[0], *q.shape[2:4])
    scores = torch.einsum("bhijd,bhikd->bhijk", q, k) * q.shape[-1] ** -0.5 + bias[:, :, None]
    return scores.masked_fill(mask[:, None, :, None], -1e9).softmax(-1) @ v


def test_peers_are_given_what_their_interfaces_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins that compute what the peers document, on the CPU: layouts, masks and biases arrive as they should."""
    for name, function in (("cuequivariance_torch", peer_triangle_attention), ("trifast", peer_trifast)):
        module = types.ModuleType(name)
        module.triangle_attention = function
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuequivariance_ops_torch", types.ModuleType("cuequivariance_ops_torch"))
    monkeypatch.setattr(importlib.import_module("variants"), "_needs_gpu", lambda x, name: None)
    P = problems.Problem
    for problem, names in (
        (P("triangle", 2, 9, 9, 9, 2, 8), {"cuequivariance", "trifast"}),
        (P("ending", 1, 9, 9, 9, 2, 8, ending=True), {"cuequivariance", "trifast"}),
        (P("shared", 3, 1, 7, 11, 2, 8, bias="shared"), {"cuequivariance"}),
        (P("windows", 3, 2, 4, 11, 2, 8), {"cuequivariance"}),
        (P("shared rows", 3, 2, 4, 11, 2, 8, bias="shared"), set()),
        (P("column", 1, 9, 9, 9, 2, 8, bias="none"), set()),
    ):
        found = evo_attention.run_problem(problem, ["cuequivariance", "trifast"], math.inf, options())["variants"]
        assert {name for name, result in found.items() if "forward_ms" in result} == names, (problem, found)
        for name in names:
            assert max(found[name]["relative_error"].values()) < 1e-5, (problem, name)
        assert all("skipped" in found[name] for name in found.keys() - names)


def test_the_tests_cases_are_problems() -> None:
    found = problems.SETS["cases"]
    assert len(found) >= 20 and len({p.name for p in found}) == len(found)
    assert {p.bias for p in found} == {"own", "shared", "none"} and any(p.ending for p in found)
    one_key = problems.Problem("one key", 1, 1, 1, 1, 1, 8)
    result = evo_attention.run_problem(one_key, ["eager"], math.inf, options())["variants"]["eager"]
    assert max(result["relative_error"].values()) < 1e-3, "a gradient of zero is no division by zero"


def test_where_ours_is_slower_is_said() -> None:
    def entry(ours: float, eager: float) -> dict[str, Any]:
        return {"problem": {"name": "p"}, "variants": {"megafold": measured(ours, 1, 1), "eager": measured(eager, 1, 1)}}

    assert evo_attention.slower_than_eager([entry(1, 2)]) == []
    assert evo_attention.slower_than_eager([entry(2.5, 2)]) == ["p forward: 2.500 against 2.000 ms"]
    assert evo_attention.slower_than_eager([{"problem": {"name": "p"}, "variants": {"megafold": {"failed": "x"}}}]) == []


def test_rounds_keep_the_lower_medians() -> None:
    best = evo_attention.quickest(measured(3, 5, 7), measured(4, 2, 7))
    assert best == measured(3, 2, 7)
    assert evo_attention.quickest(None, {"skipped": "x"}) == {"skipped": "x"}
    assert evo_attention.quickest(measured(1, 1, 1), {"failed": "x"}) == {"failed": "x"}


def test_the_slow_starters_come_last() -> None:
    assert evo_attention.rounds(["compile", "eager", "trifast"]) == [["eager"], ["compile", "trifast"]]
    assert evo_attention.rounds(["eager"]) == [["eager"]]


def measured(forward: float, backward: float, peak: float) -> dict[str, float]:
    return {"forward_ms": forward, "backward_ms": backward, "peak_mib": peak}


def test_a_table_shows_what_was_measured() -> None:
    problem = {"name": "windows", "B": 2, "S": 1, "Nq": 32, "Nk": 128, "H": 4, "D": 8}
    report = {
        "environment": {"device": "Some GPU", "driver": "1.2", "packages": {"torch": "9.9"}, "commit": "abc", "date": "2026-01-02T03"},
        "dtype": "bfloat16", "bias_dtype": "float32",
        "results": [{"problem": problem, "variants": {
            "eager": measured(123.4, 10.04, 2048.7), "megafold": measured(0.123, 1.5, 3.25),
            "sdpa": {"failed": "out of memory"}, "flex": {"skipped": "no"}, "trifast": {"skipped": "no"}}}],
    }  # fmt: skip
    lines = table.table(report, "x.json").splitlines()
    assert "Some GPU, driver 1.2; torch 9.9; commit abc, 2026-01-02; [all of it](x.json)" in lines[0]
    assert lines[2] == "| use [B, S, N, H, D] | MegaFold | eager | peak MiB, ours / eager |"
    assert lines[4] == "| windows [2, 1, 32 x 128, 4, 8] | 0.12 / 1.50 | 123 / 10.0 | 3.25 / 2049 |"


def test_the_pages_show_their_reports() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    result = run(FOLDER / "table.py", "--check", *pages)
    assert result.returncode == 0, result.stdout + result.stderr
    assert table.BLOCK.search((ROOT / "README.md").read_text()), "the README shows no measured table"


def test_a_stale_table_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "README.md").read_text().replace("| use [B, S, N, H, D] |", "| use, edited by hand |"))
    result = run(FOLDER / "table.py", "--check", page)
    assert result.returncode == 1 and "page.md: a table is out of date" in result.stdout
    assert run(FOLDER / "table.py", page).returncode == 0
    assert page.read_text() == (ROOT / "README.md").read_text()
