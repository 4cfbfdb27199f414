"""Layers over the fused operators, with torch.nn's parameters inside.

Their parameters live in ordinary LayerNorm and Linear submodules, so state dicts of the layers they replace load after
renaming prefixes at most, and initialisation, dtype and device handling are torch.nn's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import functional

__all__ = [
    "Attention",
    "LayerNormLinear",
    "Transition",
    "TriangleAttention",
    "TriangleMultiplication",
    "TriangleMultiplicationIncoming",
    "TriangleMultiplicationOutgoing",
]


def _rename_prefixes(renames: dict[str, str]) -> Any:
    """A load_state_dict pre-hook that accepts other names of the submodules, e.g. those of a Sequential."""

    def hook(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        for old, new in renames.items():
            for key in [key for key in state if key.startswith(prefix + old)]:
                state[prefix + new + key[len(prefix + old) :]] = state.pop(key)

    return hook


class LayerNormLinear(nn.Module):
    """torch.nn.Linear(torch.nn.LayerNorm(x)) fused; x [..., in_features] -> [..., out_features].

    Parameters: layer_norm.weight, layer_norm.bias, linear.weight, linear.bias. State dicts of
    nn.Sequential(nn.LayerNorm, nn.Linear) load as they are. `from_layers` shares the parameters of two existing layers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        layer_norm_bias: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(in_features, eps, bias=layer_norm_bias, device=device, dtype=dtype)
        self.linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_rename_prefixes({"0.": "layer_norm.", "1.": "linear."}))

    @classmethod
    def from_layers(cls, layer_norm: nn.LayerNorm, linear: nn.Linear) -> LayerNormLinear:
        """The fusion of two layers, holding their very parameters."""
        if tuple(layer_norm.normalized_shape) != (linear.in_features,):
            raise ValueError(
                f"LayerNorm normalises {tuple(layer_norm.normalized_shape)}, the Linear takes ({linear.in_features},)"
            )
        fused = cls(linear.in_features, linear.out_features, eps=layer_norm.eps, device="meta")
        fused.layer_norm, fused.linear = layer_norm, linear
        return fused

    def forward(self, x: Tensor) -> Tensor:
        norm, linear = self.layer_norm, self.linear
        return functional.layer_norm_linear(x, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps)


class Transition(nn.Module):
    """LayerNorm, SwiGLU, projection back: w2(silu(gate(u)) * value(u)), u = layer_norm(x); x [..., dim] -> [..., dim].

    Parameters: layer_norm.weight/bias [dim], gate.weight and value.weight [dim * expansion_factor, dim],
    out.weight [dim, dim * expansion_factor].
    """

    def __init__(
        self,
        dim: int,
        expansion_factor: int = 4,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = dim * expansion_factor
        self.layer_norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.gate = nn.Linear(dim, hidden, bias=False, device=device, dtype=dtype)
        self.value = nn.Linear(dim, hidden, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(hidden, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.layer_norm
        return functional.transition(
            x, norm.weight, norm.bias, self.gate.weight, self.value.weight, self.out.weight, norm.eps
        )


class TriangleMultiplication(nn.Module):
    """The triangular multiplicative update of a pair tensor; x [B, N, N, dim], mask [B, N, N] or None -> [B, N, N, dim].

    Parameters: layer_norm_in, linear_a_p, linear_a_g, linear_b_p, linear_b_g [hidden, dim], layer_norm_out,
    linear_z [dim, hidden], linear_g [dim, dim]: the names that AlphaFold-style PyTorch models share, without biases.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        outgoing: bool,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = dim if hidden is None else hidden
        make: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.outgoing = outgoing
        self.layer_norm_in = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.linear_a_p = nn.Linear(dim, hidden, **make)
        self.linear_a_g = nn.Linear(dim, hidden, **make)
        self.linear_b_p = nn.Linear(dim, hidden, **make)
        self.linear_b_g = nn.Linear(dim, hidden, **make)
        self.layer_norm_out = nn.LayerNorm(hidden, eps, device=device, dtype=dtype)
        self.linear_z = nn.Linear(hidden, dim, **make)
        self.linear_g = nn.Linear(dim, dim, **make)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        norm_in, norm_out = self.layer_norm_in, self.layer_norm_out
        return functional.triangle_multiplication(
            x,
            mask,
            self.outgoing,
            norm_in.weight,
            norm_in.bias,
            self.linear_a_p.weight,
            self.linear_a_g.weight,
            self.linear_b_p.weight,
            self.linear_b_g.weight,
            norm_out.weight,
            norm_out.bias,
            self.linear_z.weight,
            self.linear_g.weight,
            norm_in.eps,
        )

    def extra_repr(self) -> str:
        return f"outgoing={self.outgoing}"


class TriangleMultiplicationOutgoing(TriangleMultiplication):
    """TriangleMultiplication over outgoing edges."""

    def __init__(self, dim: int, hidden: int | None = None, **options: Any) -> None:
        super().__init__(dim, hidden, outgoing=True, **options)


class TriangleMultiplicationIncoming(TriangleMultiplication):
    """TriangleMultiplication over incoming edges."""

    def __init__(self, dim: int, hidden: int | None = None, **options: Any) -> None:
        super().__init__(dim, hidden, outgoing=False, **options)


class Attention(nn.Module):
    """Gated multi-head attention over the third dimension, with a key mask and a pair bias.

        out = linear_o(sigmoid(linear_g(x)) * EvoAttention(linear_q(x), linear_k(x), linear_v(x), mask, bias))

    x [B, S, N, dim]; mask [B, S, 1, 1, N], bool or additive; bias [B or 1, 1, heads, N, N]. The projections have no
    bias, the gate and the output projection have one when `gate_bias` and `out_bias` say so (AlphaFold 2 has both,
    AlphaFold 3 neither).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int | None = None,
        *,
        gate_bias: bool = False,
        out_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % heads != 0:
            raise ValueError(f"dim {dim} is not a multiple of {heads} heads; give head_dim")
        self.heads = heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        inner = self.heads * self.head_dim
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        self.linear_q = nn.Linear(dim, inner, bias=False, **make)
        self.linear_k = nn.Linear(dim, inner, bias=False, **make)
        self.linear_v = nn.Linear(dim, inner, bias=False, **make)
        self.linear_g = nn.Linear(dim, inner, bias=gate_bias, **make)
        self.linear_o = nn.Linear(inner, dim, bias=out_bias, **make)

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        split = (self.heads, self.head_dim)
        q, k, v = (linear(x).unflatten(-1, split) for linear in (self.linear_q, self.linear_k, self.linear_v))
        out = functional.evo_attention(q, k, v, mask, bias).flatten(-2)
        return self.linear_o(torch.sigmoid(self.linear_g(x)) * out)


class TriangleAttention(nn.Module):
    """Triangle attention around the starting or (starting=False) the ending node; x [B, N, N, dim], mask [B, N, N] bool.

    The bias is a projection of the normalised pair tensor. The ending node's attention passes transposed views; no
    transposed copy of q, k, v or the result is made by the operator.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        head_dim: int = 32,
        *,
        starting: bool,
        eps: float = 1e-5,
        gate_bias: bool = False,
        out_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        self.starting = starting
        self.layer_norm = nn.LayerNorm(dim, eps, **make)
        self.linear = nn.Linear(dim, heads, bias=False, **make)
        self.mha = Attention(dim, heads, head_dim, gate_bias=gate_bias, out_bias=out_bias, **make)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        z = self.layer_norm(x)
        split = (self.mha.heads, self.mha.head_dim)
        q, k, v = (linear(z).unflatten(-1, split) for linear in (self.mha.linear_q, self.mha.linear_k, self.mha.linear_v))
        bias = self.linear(z)
        if not self.starting:
            q, k, v, bias = (t.transpose(1, 2) for t in (q, k, v, bias))
            mask = None if mask is None else mask.transpose(1, 2)
        bias = bias.permute(0, 3, 1, 2).unsqueeze(1)
        key_mask = None if mask is None else mask[:, :, None, None, :]
        out = functional.evo_attention(q, k, v, key_mask, bias)
        if not self.starting:
            out = out.transpose(1, 2)
        return self.mha.linear_o(torch.sigmoid(self.mha.linear_g(z)) * out.flatten(-2))

    def extra_repr(self) -> str:
        return f"starting={self.starting}"
