"""The house's rules that a compiler does not enforce by itself: public headers compile alone, includes go one way."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_HEADERS = sorted((ROOT / "include").rglob("*.h"))

# folder -> the prefixes its files may include, beside the standard library (docs/architecture.md)
PUBLIC = ("megafold/",)
FRAMEWORK = ("torch/", "ATen/", "c10/")
ALLOWED = {
    "include/megafold/core": ("megafold/core/",),
    "include/megafold/ops": ("megafold/core/", "megafold/ops/"),
    "src/core": (*PUBLIC, "megafold_git_commit.h"),
    "src/ops": (*PUBLIC, "ops/", "backends/"),
    "src/backends/cpu": (*PUBLIC, "backends/implementation.h", "backends/cpu/", "hwy/"),
    "src/backends/cuda": (*PUBLIC, "backends/implementation.h", "backends/cuda/", "cuda"),
    "src/backends/hip": (*PUBLIC, "backends/implementation.h", "backends/hip/", "hip/"),
    "src/tuning": (*PUBLIC, "tuning/", "nlohmann/"),
    "src/torch_ops": (*PUBLIC, "torch_ops/", "tuning/", *FRAMEWORK),
    "src/config": (*PUBLIC, "config/", "yaml-cpp/"),
    "src/data": (*PUBLIC, "data/", "config/", "gemmi/", "zlib.h"),
    "src/model": (*PUBLIC, "model/", "config/", "torch_ops/", *FRAMEWORK),
    "src/train": (*PUBLIC, "train/", "config/", "data/", "torch_ops/", "nlohmann/", *FRAMEWORK),
    "apps/megafold": (*PUBLIC, "apps/", "train/", "model/", "data/", "config/", "torch_ops/", "tuning/", "CLI/", "nlohmann/", *FRAMEWORK),
}
SOURCES = (".h", ".cc", ".cu", ".cuh", ".hip")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.MULTILINE)


def is_standard(path: str) -> bool:
    """A header of the C++ standard library or of POSIX, told by having no folder but sys/."""
    return "/" not in path or path.startswith("sys/")


@pytest.mark.parametrize("header", PUBLIC_HEADERS, ids=lambda path: str(path.relative_to(ROOT / "include")))
def test_public_header_compiles_alone(header: Path) -> None:
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}", "-x", "c++", "-"]
    text = f'#include "{header.relative_to(ROOT / "include")}"\n'
    result = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_includes_go_one_way(folder: str) -> None:
    forbidden = []
    files = [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SOURCES]
    assert files, f"{folder} holds no source: the table in this test and in docs/architecture.md is out of date"
    for path in files:
        for bracket, name in INCLUDE.findall(path.read_text()):
            if name.startswith(ALLOWED[folder]) or (bracket == "<" and is_standard(name)):
                continue
            forbidden.append(f"{path.relative_to(ROOT)} includes {name}")
    assert not forbidden, "\n".join(forbidden)


STREAMS = {"sstream", "iostream", "ostream", "istream", "fstream", "iomanip", "iosfwd", "locale"}
LOADED_BY_PYTHON = ("include", "src/core", "src/ops", "src/backends", "src/tuning", "src/torch_ops")


@pytest.mark.parametrize("folder", LOADED_BY_PYTHON)
def test_no_streams_where_python_loads(folder: str) -> None:
    """Their locale facets may come from another copy of the C++ runtime there (megafold/core/error.h)."""
    files = [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SOURCES]
    assert files
    using = [f"{path.relative_to(ROOT)} includes <{name}>" for path in files for _, name in INCLUDE.findall(path.read_text()) if name in STREAMS]
    assert not using, "\n".join(using)


def test_gemmi_comes_after_cstdint() -> None:
    """gemmi before 0.6 uses std::uint8_t without its header, which GCC 13 no longer brings along."""
    for path in sorted((ROOT / "src/data").rglob("*.h")):
        names = [name for _, name in INCLUDE.findall(path.read_text())]
        first = next((i for i, name in enumerate(names) if name.startswith("gemmi/")), None)
        assert first is None or "cstdint" in names[:first], f"{path.relative_to(ROOT)}: include <cstdint> before gemmi"


def test_precompiled_header_comes_first() -> None:
    """GCC reads a precompiled header only as the first -include, and does not say when it leaves it unread."""
    if "MEGAFOLD_LIBRARY_DIR" not in os.environ:
        pytest.skip("MEGAFOLD_LIBRARY_DIR is not set: there is no build tree to look at")
    database = Path(os.environ["MEGAFOLD_LIBRARY_DIR"]).resolve().parent / "compile_commands.json"
    if not database.is_file():
        pytest.skip(f"{database.parent} is not a build tree: an installed package is under test")
    commands = [entry["command"].split() for entry in json.loads(database.read_text())]
    using = [command for command in commands if any(word.endswith("cmake_pch.hxx") for word in command)]
    assert using
    for command in using:
        first = command[command.index("-include") + 1]
        assert first.endswith("cmake_pch.hxx"), f"{command[-1]}: -include {first} comes before the precompiled header"


def test_every_source_folder_is_in_the_table() -> None:
    folders = {f"src/{path.name}" for path in (ROOT / "src").iterdir() if path.is_dir()}
    covered = {"/".join(name.split("/")[:2]) for name in ALLOWED}
    assert folders <= covered, f"add {sorted(folders - covered)} to the table here and in docs/architecture.md"


def test_kernel_types_have_one_definition() -> None:
    """Headers of different CUDA paths meet in one library: two types of one name would be one to the linker."""
    places: dict[str, set[str]] = {}
    for header in (path for kind in ("*.h", "*.cuh") for path in (ROOT / "src/backends/cuda").rglob(kind)):
        for name in re.findall(r"^(?:struct|class) (\w+)(?: final)?(?: : [^{;]+)? \{", header.read_text(), re.MULTILINE):
            places.setdefault(name, set()).add(str(header.relative_to(ROOT)))
    assert len(places) > 40, "the pattern finds no types any more"
    assert not {name: sorted(where) for name, where in places.items() if len(where) > 1}
