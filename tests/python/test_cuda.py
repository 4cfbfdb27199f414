"""The PyTorch layer on a GPU: exactness, streams, graph capture, autocast, compile. tests/cuda tests the kernels themselves."""

from __future__ import annotations

import megafold
import pytest
import torch
from operators import LARGER, Case, Operands
from test_operators import assert_exact, cases, results, widened

BUILT = any(b["built"] for name, b in megafold.build_info()["backends"].items() if name != "cpu")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    pytest.mark.skipif(not BUILT, reason="this build of megafold has no GPU backend"),
]
OTHERS = [case for case in LARGER if case.op != "evo_attention"]
ATTENTION = [case for case in LARGER if case.op == "evo_attention"]
TRIANGLE = next(case for case in ATTENTION if case.name == "triangle attention, ending")


def moved(o: Operands) -> Operands:
    """On the GPU, with the strides they had."""
    return {n: v.detach().to("cuda").requires_grad_(v.requires_grad) for n, v in o.items()}


@cases(ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exactness(case: Case, dtype: torch.dtype) -> None:
    o = moved(case.operands(dtype))
    cotangent = torch.randn_like(case.run(o).detach())
    ours = results(case.run, o, cotangent)
    assert_exact(ours, results(case.eager, o, cotangent), results(case.eager, widened(o), cotangent), dtype)


@cases(OTHERS)
def test_operators_without_kernels(case: Case) -> None:
    """By a kernel, or by PyTorch's operators where this build has none for the GPU: both are right, gradients too."""
    o = moved(case.operands(torch.float32))
    cotangent = torch.randn_like(case.run(o).detach())
    ours = results(case.run, o, cotangent)
    assert_exact(ours, results(case.eager, o, cotangent), results(case.eager, widened(o), cotangent), torch.float32)


def test_uses_the_current_stream() -> None:
    """On a side stream behind a long wait: work on another stream would read q before it is written."""
    o = moved(TRIANGLE.operands(torch.bfloat16))
    expected = TRIANGLE.run(o).detach()
    late = {n: torch.zeros_like(v) for n, v in o.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        for name, value in late.items():
            value.copy_(o[name].detach())
        out = TRIANGLE.run(late)
    side.synchronize()
    assert torch.equal(out, expected)


def test_graph_capture_replays_the_same_numbers() -> None:
    o = moved(TRIANGLE.operands(torch.bfloat16))
    cotangent = torch.randn_like(TRIANGLE.run(o).detach())
    expected = results(TRIANGLE.run, o, cotangent)
    inputs = [v for v in o.values() if v.requires_grad]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.autograd.grad(TRIANGLE.run(o), inputs, cotangent)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = TRIANGLE.run(o)
        gradients = torch.autograd.grad(out, inputs, cotangent)
    for tensor in (out, *gradients):
        tensor.detach().fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for ours, name in zip((out, *gradients), expected, strict=True):
        assert torch.equal(ours.detach().double(), expected[name]), name


def test_autocast() -> None:
    o = moved(TRIANGLE.operands(torch.float32))
    with torch.autocast("cuda", torch.bfloat16):
        out = TRIANGLE.run(o)
    assert out.dtype == torch.bfloat16
    by_hand = {n: v if n in ("bias", "mask") else v.detach().to(torch.bfloat16) for n, v in o.items()}
    assert torch.equal(out, TRIANGLE.run(by_hand))
    out.float().sum().backward()
    assert all(v.grad.dtype == torch.float32 for n, v in o.items() if n != "mask")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    torch.compiler.reset()
    plain, traced = (moved(TRIANGLE.operands(torch.bfloat16)) for _ in range(2))
    names = list(plain)

    def function(*values: torch.Tensor) -> torch.Tensor:
        return TRIANGLE.run(dict(zip(names, values, strict=True))).float().square().sum()

    expected = function(*plain.values())
    value = torch.compile(function, fullgraph=True, backend=backend)(*traced.values())
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)
    expected.backward()
    value.backward()
    for name in ("q", "k", "v", "bias"):
        torch.testing.assert_close(traced[name].grad, plain[name].grad, rtol=1e-2, atol=1e-2)


def test_operand_on_another_device_is_named() -> None:
    o = moved(TRIANGLE.operands(torch.bfloat16))
    with pytest.raises(RuntimeError, match="mask is on device 'cpu:0', expected 'cuda:0'"):
        TRIANGLE.run(o | {"mask": o["mask"].cpu()})


def test_tf32_follows_pytorch() -> None:
    """float32 products are rounded to TF32 where torch.backends.cuda.matmul.allow_tf32 says so, and only there."""
    o = moved(TRIANGLE.operands(torch.float32))
    right = TRIANGLE.eager(widened(o)).detach()

    def error() -> float:
        return ((TRIANGLE.run(o).detach().double() - right).norm() / right.norm()).item()

    assert error() < 1e-5
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert 2e-5 < error() < 3e-3
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert error() < 1e-5
