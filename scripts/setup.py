#!/usr/bin/env python3
"""Sets a fresh machine up for MegaFold: system libraries, .venv, PyTorch. Needs only Python 3.10 and g++.

    python3 scripts/setup.py            what `make demo` and `make test` run first; a second run does nothing
    python3 scripts/setup.py --check    only say what is missing (exit status 1 if anything is)

System libraries come from the distribution's packages when this may install them (root, or sudo without a password);
otherwise the same packages are unpacked into .deps/, which the build searches first. On a machine that is cut off from
every registry, unpack an archive made by scripts/gather_deps.py there and set MEGAFOLD_WHEELS to its wheels folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from system_libraries import SYSTEM_LIBRARIES, debian_multiarch, unpack_packages

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
DEPS = ROOT / ".deps"
REQUIREMENTS = ROOT / "scripts" / "requirements.txt"
TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def fail(text: str) -> None:
    sys.exit(f"setup: {text}")


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compiles(header: str) -> bool:
    """Whether g++ finds the header, in .deps/ or on the system."""
    include = [f"-I{path}" for path in (DEPS / "usr/include", DEPS / f"usr/include/{debian_multiarch()}")]
    probe = subprocess.run(
        ["g++", "-std=c++20", "-M", "-x", "c++", "-", *include],
        input=f"#include <{header}>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    return probe.returncode == 0


def missing_libraries() -> dict[str, str]:
    return {package: header for package, header in SYSTEM_LIBRARIES.items() if not compiles(header)}


def check_compiler() -> None:
    for tool in ("g++", "make", "git"):
        if shutil.which(tool) is None:
            fail(f"'{tool}' is not installed; install it with: apt-get install {tool}")
    version = subprocess.run(["g++", "-dumpversion"], text=True, capture_output=True, check=True).stdout
    if int(version.split(".")[0]) < 12:
        fail(f"g++ {version.strip()} is too old for C++20; version 12 or newer is needed")


def root_prefix() -> list[str] | None:
    """The words before apt-get, or None when packages cannot be installed here."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and succeeds(["sudo", "-n", "true"]):
        return ["sudo", "-n"]
    return None


def apt_install(packages: list[str]) -> bool:
    prefix = root_prefix()
    if prefix is None:
        return False
    say(f"installing {' '.join(packages)}")
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o=Dpkg::Use-Pty=0"]
    errors = ""
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run([*apt, *words], check=False, capture_output=True, text=True)
        errors += done.stderr
    if done.returncode != 0:
        print(errors, end="", file=sys.stderr)  # of use only now: a bare machine's apt warns of much that is no fault
    return done.returncode == 0


def install_system_libraries() -> None:
    missing = missing_libraries()
    if not missing:
        return
    if not apt_install(list(missing)):
        unpack_packages(list(missing), DEPS)
    still = missing_libraries()
    if still:
        fail(
            "missing system packages that cannot be installed here: "
            + " ".join(still)
            + " (ask for: apt-get install "
            + " ".join(still)
            + "; or make an archive with scripts/gather_deps.py on a connected machine)"
        )


def create_venv() -> None:
    if (VENV / "bin" / "python").exists() and (VENV / "bin" / "pip").exists():
        return
    say("creating .venv")
    make = [sys.executable, "-m", "venv", str(VENV)]
    if succeeds(make):
        return
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    attempts = [lambda: apt_install([package]) and succeeds(make), lambda: create_venv_from_pip_wheel(make)]
    if os.environ.get("MEGAFOLD_WHEELS"):  # a machine that is cut off: apt would wait in vain
        attempts.reverse()
    for attempt in attempts:
        shutil.rmtree(VENV, ignore_errors=True)
        if attempt():
            return
    shutil.rmtree(VENV, ignore_errors=True)
    fail(f"Python's venv module is incomplete and cannot be installed here; ask for: apt-get install {package}")


def create_venv_from_pip_wheel(make: list[str]) -> bool:
    """Debian's Python comes without the pip that venv installs; as a wheel it needs no root."""
    gathered = os.environ.get("MEGAFOLD_WHEELS")
    if not gathered:
        unpack_packages(["python3-pip-whl"], DEPS)
    wheels = sorted(Path(gathered or DEPS / "usr/share/python-wheels").resolve().glob("pip-*.whl"))
    if not wheels or not succeeds([*make, "--without-pip"]):
        return False
    return succeeds([str(VENV / "bin" / "python"), f"{wheels[-1]}/pip", "install", "--no-index", str(wheels[-1])])


def has_gpu() -> bool:
    """An NVIDIA or AMD GPU whose driver is loaded."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def pip_is_configured() -> bool:
    """Whether the user's pip already names an index or a folder of wheels: their choice then holds for PyTorch too."""
    listing = subprocess.run(
        [str(VENV / "bin" / "pip"), "config", "list"], text=True, capture_output=True, check=False
    ).stdout
    return any(key in listing for key in ("index-url", "find-links")) or "PIP_INDEX_URL" in os.environ


def pip_install(arguments: list[str]) -> bool:
    wheels = os.environ.get("MEGAFOLD_WHEELS")
    offline = ["--no-index", "--find-links", wheels] if wheels else []
    command = [str(VENV / "bin" / "pip"), "install", "--quiet", *offline, *arguments]
    return subprocess.run(command, check=False).returncode == 0


def install_torch() -> None:
    if not has_gpu() and not pip_is_configured() and not os.environ.get("MEGAFOLD_WHEELS"):
        say(f"installing {TORCH}, CPU build (no GPU driver found)")
        if pip_install([TORCH, "--index-url", TORCH_CPU_INDEX]):
            return
        say("the CPU build's index did not answer; taking the default build")
    else:
        say(f"installing {TORCH}")
    if not pip_install([TORCH]):
        fail(f"pip could not install {TORCH}")


def install_python_packages() -> None:
    stamp = VENV / "megafold-requirements.sha256"
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + TORCH.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    probe = [str(VENV / "bin" / "python"), "-c", "import torch; assert torch.__version__.startswith('2.')"]
    if not succeeds(probe):
        install_torch()
    say("installing Python packages")
    if not pip_install(["-r", str(REQUIREMENTS)]):
        fail(f"pip could not install {REQUIREMENTS.relative_to(ROOT)}")
    stamp.write_text(digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    arguments = parser.parse_args()
    if sys.version_info < (3, 10):
        fail(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    check_compiler()
    if arguments.check:
        missing = missing_libraries()
        say("missing: " + " ".join(missing) if missing else "every system library is present")
        sys.exit(1 if missing else 0)
    install_system_libraries()
    create_venv()
    install_python_packages()


if __name__ == "__main__":
    main()
