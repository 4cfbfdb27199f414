#!/usr/bin/env python3
"""EvoAttention side by side: ours, eager, torch.compile, SDPA, FlexAttention and whichever peers are importable.

    PYTHONPATH=python MEGAFOLD_LIBRARY_DIR=build/cuda/lib python benchmarks/ops/evo_attention.py --output results.json
    python benchmarks/ops/evo_attention.py --device cpu --set cpu --dtype float32 --variants megafold eager sdpa

Every variant of a problem runs in one process on the same inputs. On a GPU several copies of the inputs are used in turn
where one would fit into L2. Times are medians; forward is measured without autograd, backward with every gradient
(dBias included) and a random cotangent; memory is what forward and backward together take beyond the inputs.
Before it is timed, a variant's output and gradients are compared with eager in fp32; the distances are in the report.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import median_ms, peak_mib
from torch import Tensor
from variants import VARIANTS, Unavailable, Variant, eager

ROOT = Path(__file__).resolve().parents[2]
L2_BYTES = 64 * 2**20
WRONG = 0.1  # a variant further from the reference than this computes something else: it is reported, not timed


@dataclass(frozen=True)
class Problem:
    name: str
    B: int
    S: int
    Nq: int
    Nk: int
    H: int
    D: int
    bias: str = "own"  # "own", "shared" by the batch, "none"
    ending: bool = False  # transposed strides, as the ending node's attention has


SETS: dict[str, list[Problem]] = {
    "gpu": [
        Problem("triangle N=384", 1, 384, 384, 384, 4, 32),
        Problem("triangle N=768", 1, 768, 768, 768, 4, 32),
        Problem("triangle N=384, ending node", 1, 384, 384, 384, 4, 32, ending=True),
        Problem("single with pair bias", 1, 1, 384, 384, 16, 24),
        Problem("diffusion, 48 samples, shared bias", 48, 1, 384, 384, 16, 48, bias="shared"),
        Problem("MSA row", 1, 128, 384, 384, 8, 32),
        Problem("MSA column", 1, 384, 128, 128, 8, 32, bias="none"),
        Problem("atom windows", 96, 1, 32, 128, 4, 32),
    ],
    "cpu": [
        Problem("triangle N=256", 1, 256, 256, 256, 4, 32),
        Problem("triangle N=256, ending node", 1, 256, 256, 256, 4, 32, ending=True),
        Problem("single with pair bias", 1, 1, 384, 384, 16, 24),
        Problem("diffusion, 8 samples, shared bias", 8, 1, 384, 384, 16, 48, bias="shared"),
        Problem("MSA row", 1, 64, 256, 256, 8, 32),
        Problem("MSA column", 1, 256, 64, 64, 8, 32, bias="none"),
        Problem("atom windows", 96, 1, 32, 128, 4, 32),
    ],
    "quick": [
        Problem("triangle N=64", 1, 64, 64, 64, 4, 32),
        Problem("single with pair bias", 1, 1, 128, 128, 4, 24),
    ],
}


@dataclass
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    bias: Tensor | None
    dout: Tensor

    def operands(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.mask, self.bias

    def leaves(self) -> list[Tensor]:
        return [t for t in (self.q, self.k, self.v, self.bias) if t is not None]


def make_inputs(p: Problem, device: str, dtype: torch.dtype, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(kind)

    def tokens(length: int) -> Tensor:
        if p.ending:
            return normal(p.B, length, p.S, p.H, p.D).transpose(1, 2).requires_grad_()
        return normal(p.B, p.S, length, p.H, p.D).requires_grad_()

    keep = torch.rand(p.B, p.S, 1, 1, p.Nk, generator=generator, device=device) < 0.9
    mask = torch.where(keep, 0.0, -1e9)
    bias = None
    if p.bias != "none":
        batch = 1 if p.bias == "shared" else p.B
        bias = normal(batch, 1, p.H, p.Nq, p.Nk, kind=torch.float32).requires_grad_()
    return Inputs(tokens(p.Nq), tokens(p.Nk), tokens(p.Nk), mask, bias, normal(p.B, p.S, p.Nq, p.H, p.D))


def rotation(p: Problem, device: str, dtype: torch.dtype) -> list[Inputs]:
    one = make_inputs(p, device, dtype, 0)
    held = sum(t.numel() * t.element_size() for t in (*one.leaves(), one.dout))
    copies = 1 if device == "cpu" else max(1, min(8, 2 * L2_BYTES // held))
    return [one, *(make_inputs(p, device, dtype, seed) for seed in range(1, copies))]


def gradients(variant: Variant, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    out = variant(*inputs.operands())
    return out, list(torch.autograd.grad(out, inputs.leaves(), inputs.dout))


def reference(inputs: Inputs) -> list[Tensor]:
    wide = Inputs(
        *(None if t is None else t.detach().float().requires_grad_(t.requires_grad) for t in every_tensor(inputs))
    )
    out, grads = gradients(eager, wide)
    return [out.detach(), *grads]


def every_tensor(inputs: Inputs) -> tuple[Tensor | None, ...]:
    return (*inputs.operands(), inputs.dout)


def differences(variant: Variant, inputs: Inputs, expected: list[Tensor]) -> dict[str, float]:
    out, grads = gradients(variant, inputs)
    names = ["out", "dq", "dk", "dv", "dbias"]
    got = [out, *grads]
    return {n: float((a.detach().float() - b).norm() / b.norm()) for n, a, b in zip(names, got, expected, strict=False)}


def measure(variant: Variant, sets: list[Inputs], device: str, repetitions: int) -> dict[str, float]:
    graphs: dict[int, Tensor] = {}

    def forward(i: int) -> None:
        with torch.no_grad():
            variant(*sets[i % len(sets)].operands())

    def build(i: int) -> None:
        graphs[0] = variant(*sets[i % len(sets)].operands())

    def backward(i: int) -> None:
        inputs = sets[i % len(sets)]
        torch.autograd.grad(graphs.pop(0), inputs.leaves(), inputs.dout)

    def both(i: int) -> None:
        build(i)
        backward(i)

    warmup = max(2, repetitions // 5)
    return {
        "forward_ms": median_ms(forward, device, repetitions, warmup),
        "backward_ms": median_ms(backward, device, repetitions, warmup, build),
        "forward_backward_ms": median_ms(both, device, repetitions, warmup),
        "peak_mib": peak_mib(both, device),
    }


def run_problem(p: Problem, names: list[str], device: str, dtype: torch.dtype, repetitions: int) -> dict[str, Any]:
    sets = rotation(p, device, dtype)
    expected = reference(sets[0])
    if device == "cuda":
        torch.cuda.empty_cache()
    results: dict[str, Any] = {}
    torch.compiler.reset()  # every problem compiles anew, within the limit on recompilations
    for name in names:
        try:
            variant = VARIANTS[name]()
            errors = differences(variant, sets[0], expected)
            if not max(errors.values()) < WRONG:
                raise RuntimeError(f"relative errors {errors}")
            results[name] = {"relative_error": errors}
            results[name].update(measure(variant, sets, device, repetitions))
        except Unavailable as reason:
            results[name] = {"skipped": str(reason)}
        except Exception as error:  # a peer that fails is a result of this comparison, ours is not
            if name == "megafold":
                raise
            results[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        print_row(p, name, results[name])
        if device == "cuda":
            torch.cuda.empty_cache()
    return {"problem": asdict(p), "input_copies": len(sets), "variants": results}


def print_row(p: Problem, name: str, result: dict[str, Any]) -> None:
    if "forward_ms" not in result:
        print(f"{p.name:36} {name:16} {result.get('skipped') or result.get('failed')}", flush=True)
        return
    print(
        f"{p.name:36} {name:16} forward {result['forward_ms']:9.3f} ms  backward {result['backward_ms']:9.3f} ms  "
        f"both {result['forward_backward_ms']:9.3f} ms  peak {result['peak_mib']:9.1f} MiB",
        flush=True,
    )


def git_commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    return answer.stdout.strip() or "unknown"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def environment(device: str) -> dict[str, Any]:
    import megafold

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "megafold": megafold.build_info(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="", help="float32, bfloat16 or float16 (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--set", choices=tuple(SETS), default="", help="which problems (default: the device's)")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repetitions", type=int, default=0, help="default: 50 on a GPU, 5 on the CPU")
    parser.add_argument("--output", type=Path, help="the JSON to write; the plot goes beside it as .png")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = arguments.device
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device == "cuda" else "float32"))
    repetitions = arguments.repetitions or (50 if device == "cuda" else 5)
    problems = SETS[arguments.set or ("gpu" if device == "cuda" else "cpu")]
    report = {
        "environment": environment(device),
        "dtype": str(dtype).removeprefix("torch."),
        "repetitions": repetitions,
        "results": [run_problem(p, arguments.variants, device, dtype, repetitions) for p in problems],
    }
    if arguments.output:
        partial = arguments.output.with_suffix(".part")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(arguments.output)
        from plot import draw

        draw(report, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
