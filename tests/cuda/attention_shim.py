"""EvoAttention of the CUDA backend through ctypes: what the tests and benchmarks of this folder drive."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3, torch.bool: 4}
_FIELDS = 15


class Unsupported(RuntimeError):
    """The implementation refuses the problem; the message is its reason."""


def find_library() -> Path | None:
    """The built shim: $MEGAFOLD_LIBRARY_DIR, or the build folder of the cuda preset."""
    root = Path(__file__).resolve().parents[2]
    folders = [os.environ.get("MEGAFOLD_LIBRARY_DIR"), root / "build" / "cuda" / "lib"]
    for folder in folders:
        if folder and (path := Path(folder) / "libmegafold_attention_shim.so").exists():
            return path
    return None


def _fields(tensor: torch.Tensor | None) -> list[int]:
    if tensor is None:
        return [0] * _FIELDS
    pad = [0] * (6 - tensor.dim())
    return [tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.dim(), *tensor.shape, *pad, *tensor.stride(), *pad]


class Shim:
    def __init__(self, path: Path, poison: bool = True) -> None:
        self.allow_tf32 = False
        self.poison = poison  # fill scratch memory with NaN: no kernel may rely on what it holds
        self._library = ctypes.CDLL(str(path))
        names = ctypes.create_string_buffer(1024)
        self._check(self._library.megafold_shim_names(names, ctypes.c_size_t(len(names))), names)
        self.names = names.value.decode().split("\n")

    @staticmethod
    def _check(status: int, message: ctypes.Array) -> None:
        if status != 0:
            text = message.value.decode()
            raise Unsupported(text) if text.startswith("unsupported") else RuntimeError(text)

    def _call(self, function: str, name: str, operands: list[torch.Tensor | None], scale: float) -> None:
        device = operands[0].device
        packed = (ctypes.c_int64 * (_FIELDS * len(operands)))(*[f for x in operands for f in _fields(x)])
        message = ctypes.create_string_buffer(4096)
        size = (ctypes.c_int64 * 2)(0, 0)

        def call(workspace: int | None) -> None:
            stream = torch.cuda.current_stream(device).cuda_stream
            status = getattr(self._library, function)(
                name.encode(), packed, ctypes.c_float(scale), ctypes.c_int(self.allow_tf32), ctypes.c_void_p(workspace), size,
                ctypes.c_int(device.index or 0), ctypes.c_void_p(stream), message, ctypes.c_size_t(len(message)))
            self._check(status, message)

        call(None)
        workspace = torch.empty(size[0], dtype=torch.uint8, device=device) if size[0] else None
        if self.poison and workspace is not None:
            workspace.fill_(0xFF)
        size[1] = 1
        call(workspace.data_ptr() if workspace is not None else None)

    def forward(self, name, q, k, v, mask, bias, out, lse, scale) -> None:
        self._call("megafold_shim_forward", name, [q, k, v, mask, bias, out, lse], scale)

    def backward(self, name, q, k, v, mask, bias, out, lse, dout, dq, dk, dv, dbias, scale) -> None:
        self._call("megafold_shim_backward", name,
                   [q, k, v, mask, bias, out, lse, dout, dq, dk, dv, dbias], scale)
