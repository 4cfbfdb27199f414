"""The C++ libraries MegaFold builds with, as Debian and Ubuntu package them, and how to unpack them without root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# package -> a header that shows it is there
SYSTEM_LIBRARIES = {
    "tao-pegtl-dev": "tao/pegtl.hpp",  # gemmi's header parser, which Debian's gemmi-dev does not name
    "gemmi-dev": "gemmi/cif.hpp",
    "libcli11-dev": "CLI/CLI.hpp",
    "libgtest-dev": "gtest/gtest.h",
    "libhwy-dev": "hwy/highway.h",
    "libyaml-cpp-dev": "yaml-cpp/yaml.h",
    "nlohmann-json3-dev": "nlohmann/json.hpp",
    "zlib1g-dev": "zlib.h",
}


def debian_multiarch() -> str:
    """The folder name of this machine's libraries, e.g. x86_64-linux-gnu."""
    answer = subprocess.run(["g++", "-print-multiarch"], text=True, capture_output=True, check=False)
    return answer.stdout.strip() or "x86_64-linux-gnu"


def runtime_packages(packages: list[str]) -> list[str]:
    """The packages and, one step on, the shared libraries that their names stand for (libyaml-cpp-dev: libyaml-cpp0.7)."""
    command = ["apt-cache", "depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks",
               "--no-replaces", "--no-enhances", *packages]
    answer = subprocess.run(command, text=True, capture_output=True, check=False).stdout
    stems = tuple(re.sub(r"(\d+g)?-dev$", "", package) for package in packages)
    names = {line.split(":", 1)[1].strip() for line in answer.splitlines() if line.strip().startswith("Depends:")}
    return sorted(set(packages) | {name for name in names if name.startswith(stems)})


def unpack_packages(packages: list[str], prefix: Path) -> bool:
    """Downloads the packages with apt and unpacks them below `prefix`; needs no root. False when apt cannot."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    print(f"setup: unpacking {' '.join(packages)} into {prefix}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in runtime_packages(packages):
            subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, check=False, stderr=subprocess.DEVNULL)
        archives = sorted(Path(folder).glob("*.deb"))
        prefix.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            subprocess.run(["dpkg-deb", "-x", str(archive), str(prefix)], check=True)
    return bool(archives)


if __name__ == "__main__":
    sys.exit("system_libraries.py is used by setup.py and gather_deps.py")
