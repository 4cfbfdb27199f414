"""The C++ install: a program outside the tree finds the package by CMake, links with it and computes attention."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What examples/cpp_attention prints, computed apart from the library in double precision on libstdc++'s random numbers.
ATTENTION = (-0.17256, 0.05570, 0.11067)


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    result = subprocess.run([str(word) for word in command], env=environment, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_tree() -> Path:
    if "MEGAFOLD_LIBRARY_DIR" not in os.environ:
        pytest.skip("MEGAFOLD_LIBRARY_DIR is not set: there is no build tree to install from")
    tree = Path(os.environ["MEGAFOLD_LIBRARY_DIR"]).resolve().parent
    if not (tree / "cmake_install.cmake").is_file():
        pytest.skip(f"{tree} is not a build tree: an installed package is under test")
    return tree


def test_the_program_runs_from_where_it_is_installed(tmp_path: Path) -> None:
    tree = build_tree()
    if not (tree / "bin/megafold").is_file():
        pytest.skip("the program megafold is not built here (make build)")
    run("cmake", "--install", tree, "--prefix", tmp_path, "--component", "program")
    output = run(tmp_path / "bin/megafold", "doctor")
    assert re.search(rf"^libmegafold +{re.escape(str(tmp_path))}/", output, re.MULTILINE), output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "lib", "share"]


def test_cpp_example_against_the_installed_library(tmp_path: Path) -> None:
    tree = build_tree()
    prefix, build = tmp_path / "prefix", tmp_path / "build"
    run("cmake", "--install", tree, "--prefix", prefix, "--component", "development")
    run("cmake", "-G", "Ninja", "-S", ROOT / "examples" / "cpp_attention", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    found = re.search(r"^megafold_DIR:PATH=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    assert found and Path(found[1]).is_relative_to(prefix), "another MegaFold was found"
    run("cmake", "--build", build)
    output = run(build / "attention")
    version = re.search(r"project\(megafold VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert version and output.startswith(f"megafold {version[1]}: "), output
    values = [float(word) for word in output.rpartition("=")[2].split()]
    assert values == pytest.approx(ATTENTION, abs=2e-4), output
