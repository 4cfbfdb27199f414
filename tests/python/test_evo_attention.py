"""EvoAttention alone: sharing, layouts, masked rows, scale."""

from __future__ import annotations

import megafold
import pytest
import torch
from operators import LARGER, Operands, eager_evo_attention, make_evo_attention, run_evo_attention
from torch import Tensor


def operands(*sizes: int, **options: object) -> Operands:
    drawn = make_evo_attention(*sizes, **options)(torch.Generator().manual_seed(3))
    return {n: v if v.dtype == torch.bool else v.float().requires_grad_(n != "mask") for n, v in drawn.items()}


def gradients(out: Tensor, o: Operands) -> dict[str, Tensor]:
    inputs = {n: v for n, v in o.items() if v.requires_grad}
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    return dict(zip(inputs, torch.autograd.grad(out, list(inputs.values()), cotangent), strict=True))


def assert_as_eager(o: Operands, scale: float | None = None) -> None:
    ours, expected = run_evo_attention(o, scale), eager_evo_attention(o, scale)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    theirs = gradients(expected, o)
    for name, gradient in gradients(ours, o).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"d{n}: {m}")


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (3, 5)])
def test_mask_shared_over_batch_or_rows(shape: tuple[int, int]) -> None:
    o = operands(3, 5, 9, 9, 2, 16, mask="none", bias=1)
    o["mask"] = torch.rand(*shape, 1, 1, 9) < 0.6
    o["mask"][..., 0] = True
    assert_as_eager(o)


def test_expanded_bias_gets_a_gradient_per_batch() -> None:
    o = operands(3, 2, 9, 9, 2, 16, bias=1)
    one = o["bias"]
    assert_as_eager(o | {"bias": one.expand(3, -1, -1, -1, -1)})
    shared = gradients(run_evo_attention(o), o)["bias"]
    expanded = dict(o) | {"bias": one.detach().expand(3, -1, -1, -1, -1).requires_grad_()}
    separate = gradients(run_evo_attention(expanded), expanded)["bias"]
    torch.testing.assert_close(separate.sum(0, keepdim=True), shared, rtol=1e-4, atol=1e-4)


def test_bias_and_mask_of_any_strides() -> None:
    o = operands(2, 3, 7, 11, 2, 16, mask="additive", bias=2)
    bias = torch.randn(2, 11, 7, 2)  # as a projection of the pair tensor leaves it, transposed
    mask = torch.randn(11, 3, 2).permute(2, 1, 0)[:, :, None, None, :]
    assert_as_eager(o | {"bias": bias.permute(0, 3, 2, 1)[:, None].requires_grad_(), "mask": mask})


def test_result_has_the_memory_order_of_q() -> None:
    """The ending node's result transposes back without a copy; so do the gradients."""
    o = operands(2, 5, 7, 7, 2, 16, mask="none", ending=True)
    out = run_evo_attention(o)
    assert out.transpose(1, 2).is_contiguous()
    assert all(g.transpose(1, 2).is_contiguous() for g in gradients(out, o).values())
    assert run_evo_attention(operands(2, 5, 7, 7, 2, 16, mask="none")).is_contiguous()


def test_slices_of_one_projection() -> None:
    """q, k, v as views of one [B, S, N, 3, H, D] tensor: no contiguous operand among them."""
    joined = torch.randn(1, 5, 9, 3, 2, 16)
    q, k, v = (t.requires_grad_() for t in joined.detach().unbind(3))
    assert_as_eager({"q": q, "k": k, "v": v})


def test_last_dimension_not_contiguous() -> None:
    o = operands(1, 5, 9, 9, 2, 16, bias=1)
    strided = {n: torch.stack([o[n].detach()] * 2, -1)[..., 0].requires_grad_() for n in "qkv"}
    assert strided["q"].stride(-1) == 2
    assert_as_eager(o | strided)


def test_cotangent_of_any_strides() -> None:
    o = operands(1, 5, 9, 9, 2, 16)
    summed = torch.autograd.grad(run_evo_attention(o).sum(), o["q"])[0]  # an expanded scalar
    ones = torch.autograd.grad(run_evo_attention(o), o["q"], torch.ones(1, 5, 9, 2, 16))[0]
    assert torch.equal(summed, ones)


def test_rows_without_keys_give_zeros() -> None:
    o = operands(2, 3, 7, 7, 2, 16, bias=1)
    o["mask"] = torch.ones(2, 3, 1, 1, 7, dtype=torch.bool)
    o["mask"][0, 1] = False
    o["mask"][1, 2] = False
    out = run_evo_attention(o)
    assert torch.count_nonzero(out[0, 1]) == 0 and torch.count_nonzero(out[1, 2]) == 0
    for name, gradient in gradients(out, o).items():
        assert torch.isfinite(gradient).all(), name
        if name != "bias":
            assert torch.count_nonzero(gradient[0, 1]) == 0, name
    assert_as_eager(o)


@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0])
def test_scale(scale: float) -> None:
    assert_as_eager(operands(1, 2, 7, 7, 2, 16, bias=1), scale)


def test_large_scores_do_not_overflow() -> None:
    """exp(200) is past float32. Backward recomputes exp(score - lse), which rounds at the size of the scores."""
    o = operands(1, 2, 7, 7, 2, 16, bias=1)
    o["bias"] = (o["bias"].detach() * 100).requires_grad_()
    o["bias"].data[..., 0] += 200
    assert_as_eager(o)
    o["bias"] = (o["bias"].detach() * 1e4).requires_grad_()
    out = run_evo_attention(o)
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g).all() for g in gradients(out, o).values())


def test_threads_do_not_change_the_result() -> None:
    case = next(case for case in LARGER if case.name == "triangle attention")
    o = case.operands(torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(megafold.evo_attention(o["q"], o["k"], o["v"], o["mask"], o["bias"]).detach())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
