"""Every operator: exactness, gradients, opcheck, torch.compile, autocast.

Exactness: with the formula in fp64 on the same values as the reference, our largest error is at most twice that of the
plain PyTorch composition in the same type (plus 1e-5), and the relative error of the whole is at most RELATIVE.
"""

from __future__ import annotations

import re
from pathlib import Path

import megafold
import pytest
import torch
from operators import LARGER, TINY, TRIANGLE, Case, Operands
from torch import Tensor

SIGNATURES = {
    "layer_norm_linear": ("x", "gamma", "beta", "weight", "linear_bias"),
    "transition": ("x", "gamma", "beta", "g1", "g2", "w2"),
    "triangle_multiplication": ("x", "mask", *TRIANGLE),
    "evo_attention": ("q", "k", "v", "mask", "bias"),
}
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = _SWITCH.read_text() if _SWITCH.exists() else ""  # such as "always [madvise] never"
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def cases(values: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", values, ids=lambda case: case.name)


def leaves(o: Operands) -> dict[str, Tensor]:
    return {name: value for name, value in o.items() if value.requires_grad}


def results(function, o: Operands, cotangent: Tensor) -> dict[str, Tensor]:
    """Output and gradients, each in float64."""
    out = function(o)
    inputs = leaves(o)
    gradients = torch.autograd.grad(out, list(inputs.values()), cotangent.to(out.dtype))
    return {"out": out.detach().double()} | {f"d{n}": g.double() for n, g in zip(inputs, gradients, strict=True)}


def widened(o: Operands) -> Operands:
    """The same values in float64: what the reference sees."""
    wide = {n: v.detach() if v.dtype == torch.bool else v.detach().double() for n, v in o.items()}
    return {n: v.requires_grad_(o[n].requires_grad) for n, v in wide.items()}


def assert_exact(ours: dict[str, Tensor], plain: dict[str, Tensor], reference: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, expected in reference.items():
        error = (ours[name] - expected).abs().max()
        allowed = 2 * (plain[name] - expected).abs().max() + 1e-5
        assert error <= allowed, f"{name}: largest error {error:.3g}, twice PyTorch's own is {allowed:.3g}"
        norm = expected.norm()
        if norm > 1e-6:
            relative = (ours[name] - expected).norm() / norm
            assert relative <= RELATIVE[dtype], f"{name}: relative error {relative:.3g}"


@cases(LARGER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exactness(case: Case, dtype: torch.dtype) -> None:
    o = case.operands(dtype)
    reference_operands = widened(o)
    with torch.no_grad():
        shape = case.eager(reference_operands).shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = results(case.run, o, cotangent)
    assert all(torch.isfinite(value).all() for value in ours.values())
    assert_exact(ours, results(case.eager, o, cotangent), results(case.eager, reference_operands, cotangent), dtype)


@cases([case for case in LARGER if case.parameters])
def test_float32_parameters_beside_bfloat16(case: Case) -> None:
    o = case.operands(torch.bfloat16, float32_parameters=True)
    cotangent = torch.ones_like(case.run(o))
    out = case.run(o)
    assert out.dtype == torch.bfloat16
    inputs = leaves(o)
    for (name, operand), gradient in zip(inputs.items(), torch.autograd.grad(out, list(inputs.values()), cotangent), strict=True):
        assert gradient.dtype == operand.dtype, name
    ours, reference = results(case.run, o, cotangent), results(case.eager, widened(o), cotangent)
    for name, expected in reference.items():
        assert (ours[name] - expected).norm() <= 1e-2 * expected.norm() + 1e-5, name


@cases(TINY)
def test_gradcheck(case: Case) -> None:
    o = case.operands(torch.float64)
    names = list(leaves(o))

    def function(*values: Tensor) -> Tensor:
        return case.run(o | dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(function, [o[name] for name in names], eps=1e-6, atol=1e-6, rtol=1e-4)


@cases(TINY)
def test_only_needed_gradients(case: Case) -> None:
    """Each operand alone: the same gradient as all together, and None for those that ask for none."""
    o = case.operands(torch.float32)
    together = leaves(o)
    cotangent = torch.randn_like(case.run(o))
    expected = dict(zip(together, torch.autograd.grad(case.run(o), list(together.values()), cotangent), strict=True))
    for name in together:
        alone = {n: v.detach().requires_grad_(n == name) for n, v in o.items()}
        case.run(alone).backward(cotangent)
        torch.testing.assert_close(alone[name].grad, expected[name])
        assert all(v.grad is None for n, v in alone.items() if n != name)


@cases(TINY)
def test_opcheck(case: Case) -> None:
    """The public operator, and the forward and backward that it is traced to."""
    o = case.operands(torch.float32)
    calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "megafold":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Recorder():
        out = case.run(o)
        torch.autograd.grad(out, list(leaves(o).values()), torch.ones_like(out))
    assert [func.name() for func, _ in calls] == [f"megafold::{case.op}_forward", f"megafold::{case.op}_backward"]
    for func, args in calls:
        own = [a.detach() if isinstance(a, Tensor) else a for a in args]
        if func.name().endswith("_forward"):
            own = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in own]
            own = [a.detach() if isinstance(a, Tensor) and a.shape == o.get("mask", torch.empty(0)).shape else a for a in own]
        torch.library.opcheck(func, tuple(own))


@pytest.mark.parametrize("case", [TINY[0], TINY[2], TINY[4], TINY[7]], ids=lambda case: case.name)
def test_opcheck_of_the_composed_operator(case: Case) -> None:
    """What the Python functions call, with the arguments they pass."""
    o = case.operands(torch.float32)
    arguments: list[object] = [o.get(name) for name in SIGNATURES[case.op]]
    if case.op == "triangle_multiplication":
        arguments.insert(2, True)
    torch.library.opcheck(getattr(torch.ops.megafold, case.op).default, tuple(arguments))


@cases(TINY)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(case: Case, dynamic: bool) -> None:
    torch.compiler.reset()
    names = list(case.operands(torch.float32))

    def function(*values: Tensor) -> Tensor:
        return case.run(dict(zip(names, values, strict=True))).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    plain, traced = case.operands(torch.float32), case.operands(torch.float32)
    expected, value = function(*plain.values()), compiled(*traced.values())
    torch.testing.assert_close(value, expected)
    expected.backward()
    value.backward()
    for name in leaves(plain):
        torch.testing.assert_close(traced[name].grad, plain[name].grad)


@cases(TINY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    """Operands of the storage type are cast, parameters stay float32; gradients come back in float32."""
    o = case.operands(torch.float32)
    with torch.autocast("cpu", dtype):
        out = case.run(o)
    assert out.dtype == dtype
    by_hand = {n: v if n in case.parameters or n == "mask" else v.to(dtype) for n, v in case.operands(torch.float32).items()}
    torch.testing.assert_close(out, case.run(by_hand), rtol=0, atol=0)
    out.float().sum().backward()
    assert all(v.grad is not None and v.grad.dtype == torch.float32 for v in leaves(o).values())


@cases(TINY)
def test_second_derivatives_are_refused(case: Case) -> None:
    o = case.operands(torch.float64)
    first = list(leaves(o).values())[0]
    (gradient,) = torch.autograd.grad(case.run(o).square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradient.sum().backward()


@cases(LARGER)
def test_backward_repeats_bit_for_bit(case: Case) -> None:
    o = case.operands(torch.float32)
    cotangent = torch.randn_like(case.run(o))
    first, second = (results(case.run, o, cotangent) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@cases([case for case in LARGER if case.op != "evo_attention"])
def test_no_gradient_mode_and_noncontiguous_operands(case: Case) -> None:
    """The same result from operands whose last dimension is not contiguous, and with no graph recorded."""
    o = case.operands(torch.float32)
    strided = {n: torch.stack([v.detach(), v.detach()], -1)[..., 0] for n, v in o.items()}
    assert not any(v.is_contiguous() for v in strided.values() if v.numel() > 1)
    with torch.no_grad():
        out = case.run(strided)
    assert not out.requires_grad
    torch.testing.assert_close(out, case.run(o).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [40, 200], ids=["few rows", "many rows"])
@pytest.mark.parametrize("op", ["layer_norm_linear", "transition"])
def test_repeated_rows(op: str, rows: int) -> None:
    """Operands and cotangents whose rows are one row in memory, of a width that is used where it lies."""
    case = next(case for case in LARGER if case.op == op)
    generator = torch.Generator().manual_seed(0)
    weights = {"weight": (48, 32)} if op == "layer_norm_linear" else {"g1": (64, 32), "g2": (64, 32), "w2": (32, 64)}

    def repeated(count: int, width: int) -> Tensor:
        return torch.randn(1, width, generator=generator).expand(count, width).requires_grad_()

    o = {"x": repeated(rows, 32), "gamma": torch.randn(32, generator=generator).requires_grad_(), "beta": None}
    o |= {name: repeated(*shape) for name, shape in weights.items()}
    cotangent = repeated(rows, 48 if op == "layer_norm_linear" else 32).detach()
    inputs = [v for v in o.values() if v is not None]
    ours, plain = (torch.autograd.grad(run(o), inputs, cotangent) for run in (case.run, case.eager))
    for got, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not HUGE_PAGES or "[never]" in HUGE_PAGES, reason="this kernel has no transparent huge pages")
def test_large_results_ask_for_huge_pages() -> None:
    out = megafold.layer_norm_linear(torch.randn(2**16, 16), None, None, torch.randn(256, 16))
    address = out.data_ptr() + out.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    raise AssertionError(f"{address:#x} is in no mapping")


def test_transposed_leading_dimensions() -> None:
    case = next(case for case in LARGER if case.name == "transition 4d")
    o = {n: v.detach() for n, v in case.operands(torch.float32).items()}
    swapped = case.run(o | {"x": o["x"].transpose(1, 2)})
    torch.testing.assert_close(swapped, case.run(o).transpose(1, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in TINY if case.op in ("layer_norm_linear", "transition")], ids=lambda c: c.name)
def test_no_rows(case: Case) -> None:
    o = {n: v.detach().requires_grad_() for n, v in case.operands(torch.float32).items()}
    o["x"] = torch.empty(0, o["x"].shape[-1], requires_grad=True)
    out = case.run(o)
    out.sum().backward()
    assert out.shape[0] == 0
    assert all(v.grad is not None and torch.count_nonzero(v.grad) == 0 for v in o.values())
