"""What is installed: the library's version, its backends, PyTorch and the devices."""

from __future__ import annotations

import json
import platform
from typing import Any

import torch

from . import _library


def build_info() -> dict[str, Any]:
    """Version, commit and compiler of libmegafold, and its backends: name -> {"built": bool, "detail": str}."""
    return json.loads(torch.ops.megafold.build_info())


def tuning_report(device: str | torch.device = "cpu") -> dict[str, list[str]]:
    """The tuned tables that hold for the device ("used"), and what is wrong with any that was found ("problems"); "cuda"
    is the current GPU."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    used, problems = torch.ops.megafold.tuning_report(device)
    return {"used": used, "problems": problems}


def doctor() -> dict[str, Any]:
    """Everything a bug report needs about this installation, as plain data; `python -m megafold` prints it."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "megafold": build_info(),
        "library": str(_library.path()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": devices,
        "tuning": {name: tuning_report(name) for name in ("cpu", *(f"cuda:{i}" for i in range(len(devices))))},
    }
