"""Importing the package: what it finds, and what it says when it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import megafold
import pytest

PACKAGE = Path(megafold.__file__).resolve().parent


def run_python(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    merged = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | environment
    return subprocess.run([sys.executable, *arguments], env=merged, text=True, capture_output=True, check=False)


def test_missing_library_is_named(tmp_path: Path) -> None:
    result = run_python(["-c", "import megafold"], MEGAFOLD_LIBRARY_DIR=str(tmp_path))
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: megafold:") and f"{tmp_path}/libmegafold_torch.so does not exist" in last


def test_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "libmegafold_torch.so").write_bytes(b"not a library")
    result = run_python(["-c", "import megafold"], MEGAFOLD_LIBRARY_DIR=str(tmp_path))
    assert result.returncode != 0
    assert f"{tmp_path}/libmegafold_torch.so did not load with PyTorch" in result.stderr


def test_installed_package_finds_its_library_beside_it(tmp_path: Path) -> None:
    """The install step that `pip install .` runs, from the tree whose libraries are under test."""
    build = megafold.LIBRARY_PATH.resolve().parent.parent
    if not (build / "cmake_install.cmake").is_file():
        pytest.skip(f"{build} is not a build tree: an installed package is under test")
    installed = tmp_path / "megafold"
    shutil.copytree(PACKAGE, installed, ignore=shutil.ignore_patterns("__pycache__", "*.so*"))
    install = ["cmake", "--install", str(build), "--component", "python", "--prefix", str(installed)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("MEGAFOLD_LIBRARY_DIR", "LD_LIBRARY_PATH")}
    script = "import megafold, torch; print(megafold.LIBRARY_PATH, megafold.modules.LayerNormLinear(8, 4)(torch.ones(2, 8)).shape)"
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment | {"PYTHONPATH": str(tmp_path)}, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{installed}/libmegafold_torch.so torch.Size([2, 4])"
    assert (installed / "libmegafold.so.0").is_file()


def test_doctor() -> None:
    facts = megafold.doctor()
    assert facts["megafold"]["backends"]["cpu"]["built"] is True
    assert set(facts["megafold"]["backends"]) == {"cpu", "cuda", "hip"}
    assert megafold.__version__ == facts["megafold"]["version"]
    assert Path(facts["library"]).is_file()
    assert facts["tuning"]["cpu"]["problems"] == []


def test_a_tuned_table_is_followed_from_python(tmp_path: Path) -> None:
    """The first call loads tables; damage is printed once."""
    (tmp_path / "torn.json").write_text("{}")
    script = (
        "import json, sys, torch, megafold; from pathlib import Path; folder = Path(sys.argv[1]);"
        "device = next(l.split(':', 1)[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'));"
        "problem = 'evo_attention forward float32 batch=1 rows=2 queries=6 keys=6 heads=1 dim=8 bias=none mask=no';"
        "entry = dict(problem=problem, implementation='cpu ref', default='cpu simd', measured='', times_ms={}, failed={});"
        "table = {k: '' for k in ('driver', 'megafold', 'commit', 'date', 'command')};"
        "table |= dict(format='megafold tuning 1', device=device, entries=[entry]);"
        "(folder / 'cpu.json').write_text(json.dumps(table));"
        "x = torch.ones(1, 2, 5, 1, 8); megafold.evo_attention(x, x, x); megafold.evo_attention(x, x, x);"
        "print(megafold.tuning_report('cpu'))"
    )
    settings = {"MEGAFOLD_TUNING": str(tmp_path), "MEGAFOLD_LOG": "dispatch"}
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ | settings, text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("evo_attention -> cpu ref (tuned)") >= 2, result.stderr
    assert result.stderr.count("torn.json: has no 'format'") == 1
    assert "cpu.json: 1 entries" in result.stdout and "torn.json" in result.stdout


def test_doctor_as_a_program() -> None:
    result = run_python(["-m", "megafold"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"megafold {megafold.__version__} (")
    assert "cpu   built" in result.stdout


def test_functions_refuse_a_typo() -> None:
    with pytest.raises(AttributeError):
        megafold.evoattention  # noqa: B018


FORKED = """
import os, torch, megafold
torch.set_num_threads(2)
x, weight = torch.randn(4096, 64), torch.randn(64, 64)
torch.randn(1 << 20).add_(1)  # PyTorch's threads are there
expected = megafold.layer_norm_linear(x, None, None, weight).tolist()
child = os.fork()
if child == 0:
    os._exit(0 if megafold.layer_norm_linear(x, None, None, weight).tolist() == expected else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_computes() -> None:
    """As a data loader's worker does: PyTorch's threads, which do the work otherwise, do not exist there."""
    result = subprocess.run([sys.executable, "-c", FORKED], text=True, capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
