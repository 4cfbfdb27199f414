"""MegaFold: fused operators for AlphaFold-style models, as PyTorch functions and modules.

    import megafold
    out = megafold.evo_attention(q, k, v, mask, bias)

megafold.functional has the functions, megafold.modules the layers, megafold.compat the call names of the Triton
MegaFold. Importing this package loads libmegafold_torch.so; `python -m megafold` prints what was loaded.
"""

from __future__ import annotations

from . import _library

LIBRARY_PATH = _library.load()  # before the modules below, which use torch.ops.megafold

from . import compat, functional, modules  # noqa: E402
from .functional import evo_attention, layer_norm_linear, transition, triangle_multiplication  # noqa: E402
from .info import build_info, doctor, tuning_report  # noqa: E402

__version__: str = build_info()["version"]

__all__ = [
    "LIBRARY_PATH",
    "__version__",
    "build_info",
    "compat",
    "doctor",
    "evo_attention",
    "functional",
    "layer_norm_linear",
    "modules",
    "transition",
    "triangle_multiplication",
    "tuning_report",
]
