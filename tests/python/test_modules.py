"""The layers against the torch.nn layers they replace, state dicts, and the call names of the Triton MegaFold."""

from __future__ import annotations

import math

import pytest
import torch
from megafold import compat, modules
from operators import eager_evo_attention
from torch import Tensor, nn
from torch.nn import functional as F


class PlainSwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return F.silu(gate) * value


def randomise(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_norm_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_linear_loads_the_layers_it_replaces(layer_norm_bias: bool, bias: bool) -> None:
    plain = randomise(nn.Sequential(nn.LayerNorm(24, bias=layer_norm_bias), nn.Linear(24, 10, bias)))
    ours = modules.LayerNormLinear(24, 10, layer_norm_bias=layer_norm_bias, bias=bias)
    ours.load_state_dict(plain.state_dict())
    other = compat.LayernormLinear(24, 10, has_layernorm_bias=layer_norm_bias, has_linear_bias=bias)
    other.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 24)
    same(ours(x), plain(x))
    same(other(x), plain(x))
    assert other.state_dict().keys() == ours.state_dict().keys()


def test_sequential_of_fused_layers_keeps_its_own_names() -> None:
    """The renaming of 0. and 1. belongs to the layer, not to a Sequential around it."""
    plain = randomise(nn.Sequential(modules.LayerNormLinear(8, 8), modules.LayerNormLinear(8, 8)))
    other = nn.Sequential(modules.LayerNormLinear(8, 8), modules.LayerNormLinear(8, 8))
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8)
    same(other(x), plain(x))


def test_from_layers_shares_parameters() -> None:
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 3)
    fused = modules.LayerNormLinear.from_layers(norm, linear)
    assert fused.linear.weight is linear.weight and fused.layer_norm.bias is norm.bias
    fused(torch.randn(4, 8)).sum().backward()
    assert linear.weight.grad is not None
    with pytest.raises(ValueError, match=r"LayerNorm normalises \(8,\), the Linear takes \(9,\)"):
        modules.LayerNormLinear.from_layers(norm, nn.Linear(9, 3))


def test_fused_transition_loads_a_sequential() -> None:
    hidden = 16 * 3
    plain = nn.Module()
    plain.ff = nn.Sequential(
        nn.LayerNorm(16), nn.Linear(16, 2 * hidden, bias=False), PlainSwiGLU(), nn.Linear(hidden, 16, bias=False)
    )
    randomise(plain)
    ours = compat.FusedTransition(dim=16, expansion_factor=3)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 7, 16)
    same(ours(x), plain.ff(x))


@pytest.mark.parametrize("module", [modules.TriangleMultiplicationOutgoing, modules.TriangleMultiplicationIncoming])
def test_triangle_multiplication(module: type[modules.TriangleMultiplication]) -> None:
    layer = randomise(module(16, 24))
    x, mask = torch.randn(1, 9, 9, 16), torch.rand(1, 9, 9) < 0.8
    z = layer.layer_norm_in(x)
    a = mask[..., None] * torch.sigmoid(layer.linear_a_g(z)) * layer.linear_a_p(z)
    b = mask[..., None] * torch.sigmoid(layer.linear_b_g(z)) * layer.linear_b_p(z)
    t = torch.einsum("bikc,bjkc->bijc" if layer.outgoing else "bkic,bkjc->bijc", a, b)
    same(layer(x, mask), torch.sigmoid(layer.linear_g(z)) * layer.linear_z(layer.layer_norm_out(t)))


@pytest.mark.parametrize("starting", [True, False])
def test_triangle_attention(starting: bool) -> None:
    layer = randomise(modules.TriangleAttention(24, heads=2, head_dim=8, starting=starting, gate_bias=True, out_bias=True))
    x, mask = torch.randn(1, 9, 9, 24), torch.rand(1, 9, 9) < 0.8
    z, kept = (x, mask) if starting else (x.transpose(1, 2), mask.transpose(1, 2))
    z = layer.layer_norm(z)
    q, k, v = (m(z).unflatten(-1, (2, 8)) for m in (layer.mha.linear_q, layer.mha.linear_k, layer.mha.linear_v))
    bias = layer.linear(z).permute(0, 3, 1, 2)[:, None]
    out = eager_evo_attention({"q": q, "k": k, "v": v, "bias": bias, "mask": kept[:, :, None, None, :]})
    expected = layer.mha.linear_o(torch.sigmoid(layer.mha.linear_g(z)) * out.flatten(-2))
    same(layer(x, mask), expected if starting else expected.transpose(1, 2))
    layer(x, mask).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_attention_of_alphafold_2_width() -> None:
    layer = randomise(modules.Attention(256, heads=8, head_dim=32, gate_bias=True, out_bias=True))
    x, mask = torch.randn(1, 3, 11, 256), torch.rand(1, 3, 1, 1, 11) < 0.8
    q, k, v = (m(x).unflatten(-1, (8, 32)) for m in (layer.linear_q, layer.linear_k, layer.linear_v))
    out = eager_evo_attention({"q": q, "k": k, "v": v, "mask": mask}).flatten(-2)
    torch.testing.assert_close(
        layer(x, mask), layer.linear_o(torch.sigmoid(layer.linear_g(x)) * out), rtol=1e-3, atol=1e-3
    )


N_RES, N_SEQ = 11, 6
USES = {
    "single attention with pair bias": ((2, 1, N_RES, 4, 8), (2, 1, 1, 1, N_RES), True),
    "triangle attention": ((2, N_RES, N_RES, 4, 8), (2, N_RES, 1, 1, N_RES), True),
    "MSA row-wise": ((2, N_SEQ, N_RES, 4, 8), (2, N_SEQ, 1, 1, N_RES), True),
    "MSA column-wise": ((2, N_RES, N_SEQ, 4, 8), (2, N_SEQ, 1, 1, N_RES), False),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("additive", [False, True])
def test_triton_evoformer_published_uses(use: str, additive: bool) -> None:
    shape, mask_shape, biased = USES[use]
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    keep = torch.rand(mask_shape) < 0.7
    keep[..., 0] = True
    keep[:, 0] = True
    mask = 1e9 * (keep.long() - 1) if additive else keep
    bias = torch.randn(2, 1, 4, N_RES, N_RES, requires_grad=True) if biased else None
    out = compat.TritonEvoformer(q, k, v, mask, bias)
    operands = {"q": q, "k": k, "v": v, "mask": mask if biased else mask.transpose(1, 4)}
    if bias is not None:
        operands["bias"] = bias
    expected = eager_evo_attention(operands)
    same(out, expected)
    inputs = [t for t in (q, k, v, bias) if t is not None]
    for ours, theirs in zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True):
        same(ours, theirs)


def test_triton_evoformer_mixed_types() -> None:
    """bfloat16 operands with a float32 bias and a float64 mask: the terms that do not fit are brought to float32."""
    q, k, v = (torch.randn(1, 3, 7, 2, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.zeros(1, 3, 1, 1, 7, dtype=torch.float64)
    bias = torch.randn(1, 1, 2, 7, 7)
    out = compat.TritonEvoformer(q, k, v, mask, bias)
    assert out.dtype == torch.bfloat16
    expected = eager_evo_attention({"q": q.float(), "k": k.float(), "v": v.float(), "bias": bias})
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    assert math.isfinite(out.float().sum().item())
