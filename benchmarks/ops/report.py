"""What a benchmark's JSON says of the machine, and writing it."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "cuequivariance-torch", "cuequivariance-ops-torch-cu13", "trifast")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False).stdout.strip()
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "device_memory_mib": properties.total_memory // 2**20,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "cuda": torch.version.cuda,
    }


def environment(device: str) -> dict[str, Any]:
    import megafold

    return {
        **(_gpu() if device == "cuda" else {"device": _cpu_name()}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": _versions(),
        "megafold": megafold.build_info(),
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*") or "unknown",
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write(report: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a run that is stopped leaves the last complete state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)
