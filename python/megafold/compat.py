"""The call names of the Triton MegaFold: changing the import is all that a model needs.

    from evoformer import TritonEvoformer                  ->  from megafold.compat import TritonEvoformer
    from fused_layernorm_linear import LayernormLinear     ->  from megafold.compat import LayernormLinear
    from fused_transition import FusedTransition           ->  from megafold.compat import FusedTransition
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import functional, modules

__all__ = ["FusedTransition", "LayernormLinear", "TritonEvoformer"]


def TritonEvoformer(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None, pair_bias: Tensor | None = None) -> Tensor:
    """EvoAttention in its four published uses.

        use                               Q, K, V                         mask                       pair_bias
        single attention with pair bias   [Batch, 1, N_res, Head, Dim]    [Batch, 1, 1, 1, N_res]    [Batch, 1, Head, N_res, N_res]
        triangle attention                [Batch, N_res, N_res, H, Dim]   [Batch, N_res, 1, 1, N_res]  the same
        MSA row-wise                      [Batch, N_seq, N_res, H, Dim]   [Batch, N_seq, 1, 1, N_res]  the same
        MSA column-wise                   [Batch, N_res, N_seq, H, Dim]   [Batch, N_seq, 1, 1, N_res]  none

    mask is bool (True = attend) or additive; an integer mask counts as additive. In the column-wise use the keys are
    the N_seq rows: there the mask may have the published shape above or [Batch, N_res, 1, 1, N_seq]. When N_seq equals N_res the
    two cannot be told apart, and it is read as the latter, [Batch, queries' row, 1, 1, key]. A mask in a lower or higher
    floating type than Q's is brought to float32.
    """
    if mask is not None:
        mask = _as_operand(mask, Q.dtype)
        rows, keys = Q.shape[1], K.shape[2]
        if pair_bias is None and mask.dim() == 5 and rows != keys and (mask.shape[1], mask.shape[4]) == (keys, rows):
            mask = mask.transpose(1, 4)
    if pair_bias is not None:
        pair_bias = _as_operand(pair_bias, Q.dtype)
    return functional.evo_attention(Q, K, V, mask, pair_bias)


def _as_operand(term: Tensor, storage: torch.dtype) -> Tensor:
    """The term as it is where the operator takes it beside `storage`, else in float32."""
    if term.dtype in (torch.bool, torch.float32, storage):
        return term
    return term.to(torch.float64 if storage == torch.float64 else torch.float32)


class LayernormLinear(modules.LayerNormLinear):
    """A fused LayerNorm(dim_K) and Linear(dim_K, dim_N)."""

    def __init__(
        self,
        dim_K: int,
        dim_N: int,
        has_layernorm_bias: bool = True,
        has_linear_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim_K, dim_N, layer_norm_bias=has_layernorm_bias, bias=has_linear_bias, device=device, dtype=dtype
        )


class FusedTransition(modules.Transition):
    """AlphaFold 3's transition: LayerNorm, SwiGLU with `dim * expansion_factor` hidden features, projection back.

    State dicts in which gate and value are one matrix load too: `ff.1.weight` [2 * hidden, dim] of a Sequential
    (LayerNorm, Linear, SwiGLU, Linear), whose upper half is the value and lower half the gate.
    """

    def __init__(
        self,
        dim: int,
        expansion_factor: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, expansion_factor, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_split_swiglu)


def _split_swiglu(module: torch.nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    joined = state.pop(prefix + "ff.1.weight", None)
    if joined is None:
        return
    state[prefix + "value.weight"], state[prefix + "gate.weight"] = joined.chunk(2)
    for old, new in (("ff.0.weight", "layer_norm.weight"), ("ff.0.bias", "layer_norm.bias"), ("ff.3.weight", "out.weight")):
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)
