#!/usr/bin/env python3
"""Gathers every dependency on a connected machine, for a build where no registry can be reached.

    python3 scripts/gather_deps.py --output megafold-deps.tar.gz            C++ libraries and Python wheels
    python3 scripts/gather_deps.py --output deps.tar.gz --no-wheels         C++ libraries alone (PyTorch is there already)

On the other machine, in the checkout:

    tar xzf megafold-deps.tar.gz                  makes .deps/ (libraries, found by the build by itself) and .deps/wheels
    MEGAFOLD_WHEELS=.deps/wheels make test        or: cmake --preset cuda && cmake --build --preset cuda
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from setup import REQUIREMENTS, TORCH
from system_libraries import SYSTEM_LIBRARIES, unpack_packages


def download_wheels(folder: Path, python: str | None) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "-d", str(folder)]
    if python:
        command += ["--python-version", python, "--only-binary=:all:"]
    subprocess.run([*command, "-r", str(REQUIREMENTS), TORCH, "pip"], check=True)  # pip: not every venv has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the .tar.gz to write")
    parser.add_argument("--no-wheels", action="store_true", help="leave the Python packages out")
    parser.add_argument("--python", help="the other machine's Python, e.g. 3.12 (default: this one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prefix = Path(scratch) / ".deps"
        if not unpack_packages(list(SYSTEM_LIBRARIES), prefix):
            sys.exit("gather_deps: apt could not download the packages; run apt-get update first")
        if not arguments.no_wheels:
            download_wheels(prefix / "wheels", arguments.python)
        partial = arguments.output.with_name(arguments.output.name + ".part")
        with tarfile.open(partial, "w:gz") as archive:
            archive.add(prefix, arcname=".deps")
        partial.replace(arguments.output)
    print(f"gather_deps: wrote {arguments.output} ({arguments.output.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
