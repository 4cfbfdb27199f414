"""The fused operators as functions.

A tensor's device chooses the implementation; all are differentiable, compile under torch.compile and follow autocast:
the operands of the storage type (q, k, v, x, weights) are cast, those that may be float32 beside it (attention mask and
bias, LayerNorm's gamma and beta, the linear bias) are left as they are. Without autocast nothing is cast.

dtypes: float32, bfloat16 or float16; on the CPU float64 too, through a plain reference meant for tests.
Errors: RuntimeError names the operand, its shape, dtype or device, and what was expected.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["evo_attention", "layer_norm_linear", "transition", "triangle_multiplication"]


def evo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention with a pair bias and a key mask, without an N^3 tensor.

        O[b,s,i,h,:] = sum_j softmax_j(scale * <q[b,s,i,h,:], k[b,s,j,h,:]> + bias[b,0,h,i,j] + mask[b,s,0,0,j]) v[b,s,j,h,:]

    Args:
        q: [B, S, Nq, H, D].
        k, v: [B, S, Nk, H, D].
        mask: [B or 1, S or 1, 1, 1, Nk]; bool (True = attend) or an additive term in q's dtype or float32. It gets no
            gradient: one that requires a gradient is an error.
        bias: [B or 1, 1, H, Nq, Nk] in q's dtype or float32. With a batch of 1 it is shared, and so is its gradient;
            an expanded bias gets a gradient of its expanded size.
        scale: D**-0.5 when left out.

    Returns:
        [B, S, Nq, H, D] in q's dtype. A query whose keys are all masked by a bool mask gives zeros, and zero gradients.

    Layout: any strides on all dimensions but the last; pass `z.transpose(1, 2)` for the ending node's attention, and the
    result comes back in that memory order. Where the last dimension is not contiguous the tensor is copied.
    """
    return torch.ops.megafold.evo_attention(q, k, v, mask, bias, scale)


def layer_norm_linear(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weight: Tensor,
    linear_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm over the last dimension followed by a linear layer, without the normalised tensor in memory.

        Y = ((x - mean) * rstd * gamma + beta) weight^T + linear_bias

    Args:
        x: [..., K]. Leading dimensions that cannot be seen as one without a copy are copied.
        gamma, beta: [K], x's dtype or float32; None leaves the factor or the term out.
        weight: [C, K], torch.nn.Linear's layout.
        linear_bias: [C], x's dtype or float32.

    Returns:
        [..., C] in x's dtype.
    """
    return torch.ops.megafold.layer_norm_linear(x, gamma, beta, weight, linear_bias, eps)


def transition(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    g1: Tensor,
    g2: Tensor,
    w2: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm, SwiGLU and the projection back; the E*K-wide hidden tensor is never stored.

        Y = (silu(U g1^T) * (U g2^T)) w2^T,   U = LayerNorm(x)

    Args:
        x: [..., K].
        gamma, beta: [K], x's dtype or float32, or None.
        g1, g2: [E*K, K], the gate (through silu) and the value.
        w2: [K, E*K].

    Returns:
        The shape and dtype of x.
    """
    return torch.ops.megafold.transition(x, gamma, beta, g1, g2, w2, eps)


def triangle_multiplication(
    x: Tensor,
    mask: Tensor | None,
    outgoing: bool,
    gamma_in: Tensor | None,
    beta_in: Tensor | None,
    wap: Tensor,
    wag: Tensor,
    wbp: Tensor,
    wbg: Tensor,
    gamma_out: Tensor | None,
    beta_out: Tensor | None,
    wop: Tensor,
    wog: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """The triangular multiplicative update.

        Z = LayerNorm_in(x)
        a = mask * sigmoid(Z wag^T) * (Z wap^T),   b = mask * sigmoid(Z wbg^T) * (Z wbp^T)
        T[i,j] = sum_k a[i,k] b[j,k] (outgoing) or sum_k a[k,i] b[k,j] (incoming)
        Y = sigmoid(Z wog^T) * (LayerNorm_out(T) wop^T)

    Args:
        x: [B, N, N, C].
        mask: [B, N, N], bool or a floating factor (x's dtype or float32), or None; it gets no gradient.
        wap, wag, wbp, wbg: [Ch, C]; wop: [C, Ch]; wog: [C, C].
        gamma_in, beta_in: [C]; gamma_out, beta_out: [Ch]; x's dtype or float32, or None.

    Returns:
        The shape and dtype of x.
    """
    return torch.ops.megafold.triangle_multiplication(
        x, mask, outgoing, gamma_in, beta_in, wap, wag, wbp, wbg, gamma_out, beta_out, wop, wog, eps
    )
