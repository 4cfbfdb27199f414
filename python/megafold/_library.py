"""Finds and loads libmegafold_torch, which registers torch.ops.megafold.*."""

from __future__ import annotations

import os
from pathlib import Path

import torch

LIBRARY = "libmegafold_torch.so"


def path() -> Path:
    """The library's file; ImportError says which file was looked for when it does not exist."""
    folder = os.environ.get("MEGAFOLD_LIBRARY_DIR")
    if folder is not None:
        candidate = Path(folder) / LIBRARY
        hint = "MEGAFOLD_LIBRARY_DIR names that folder; build the target megafold_torch there, or unset the variable"
    else:
        candidate = Path(__file__).resolve().parent / LIBRARY
        hint = "install the package with `pip install .`, or set MEGAFOLD_LIBRARY_DIR to a build's lib folder"
    if not candidate.is_file():
        raise ImportError(f"megafold: {candidate} does not exist: {hint}")
    return candidate


def load() -> Path:
    """Loads the library and returns its path. ImportError says which file was looked for, or why it did not load."""
    library = path()
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"megafold: {library} did not load with PyTorch {torch.__version__}: {error} "
            "(it must be built against this very PyTorch version)"
        ) from error
    return library
