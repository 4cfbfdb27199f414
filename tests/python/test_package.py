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


def test_doctor_as_a_program() -> None:
    result = run_python(["-m", "megafold"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"megafold {megafold.__version__} (")
    assert "cpu   built" in result.stdout


def test_functions_refuse_a_typo() -> None:
    with pytest.raises(AttributeError):
        megafold.evoattention  # noqa: B018
