#!/usr/bin/env python3
"""EvoAttention side by side: ours, eager, torch.compile, SDPA, FlexAttention and whichever peers are importable.

    PYTHONPATH=python MEGAFOLD_LIBRARY_DIR=build/cuda/lib python benchmarks/ops/evo_attention.py --output results.json
    python benchmarks/ops/evo_attention.py --device cpu --quick

Every variant of a problem runs in one process on the same inputs. On a GPU times are the device's (CUDA events, the host
ahead), and several copies of the inputs are used in turn where one would stay in L2. Times are medians; forward is
measured without autograd, backward with every gradient (dBias included) and a random cotangent; memory is what forward
and backward together take beyond the inputs. Before it is timed, a variant's output and gradients are compared with
float64 on all of the first inputs: the relative errors are in the report, and one that is wrong is not timed. The
first call's seconds hold compilation and autotuning. Status 1 when ours failed on some problem.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from compare import one_variant, print_row, quickest, results_mib, slower_than_eager
from labels import OURS
from measure import Effort
from problems import SETS, Inputs, Problem, make_inputs, reference
from report import environment, write
from variants import VARIANTS

L2_BYTES = 64 * 2**20
MOST_COPIES = 16
SLOW_TO_START = ("trifast", "compile")


def rotation(p: Problem, options: argparse.Namespace) -> list[Inputs]:
    """Enough copies of the inputs that L2 has forgotten the first when it comes again."""

    def make(seed: int) -> Inputs:
        return make_inputs(p, options.device, options.dtype, options.bias_dtype, seed)

    one = make(0)
    copies = 1 if options.device == "cpu" else max(1, min(MOST_COPIES, 2 * L2_BYTES // one.bytes()))
    return [one, *(make(seed) for seed in range(1, copies))]


def run_problem(p: Problem, names: list[str], deadline: float, options: argparse.Namespace) -> dict[str, Any]:
    sets = rotation(p, options)
    expected = reference(sets[0])
    results: dict[str, Any] = {}
    torch.compiler.reset()  # every problem compiles anew, within the limit on recompilations
    for turn in range(options.rounds):
        for name in names:
            if time.monotonic() <= deadline:
                results[name] = quickest(results.get(name), one_variant(VARIANTS[name], sets, expected, options))
            else:
                results.setdefault(name, {"skipped": "the run's time was up (--budget)"})
            if turn + 1 == options.rounds:
                print_row(p.name, name, results[name])
            if options.device == "cuda":
                torch.cuda.empty_cache()
    return {"problem": asdict(p), "input_copies": len(sets), "results_mib": results_mib(sets[0]), "variants": results}


def rounds(variants: list[str]) -> list[list[str]]:
    """Those that compile or autotune for long come last, after all problems: a budget ends with them."""
    last = [name for name in variants if name in SLOW_TO_START]
    return [names for names in ([n for n in variants if n not in last], last) if names]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="", help="float32, bfloat16 or float16 (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--bias-dtype", default="float32", help="float32 (default), or 'storage' for that of q")
    parser.add_argument("--set", nargs="+", choices=tuple(SETS), default=[], help="which problems (default: the device's)")
    parser.add_argument("--quick", action="store_true", help="tiny problems and few calls: checks the program, not the speed")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=0.0, help="time for each median (default: 0.15 on a GPU, 2 on the CPU)")
    parser.add_argument("--rounds", type=int, default=1, help="take turns this often, and report each variant's lowest medians")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no variant is begun")
    parser.add_argument("--output", type=Path, help="the JSON to write, anew after each problem; the plot goes beside it as .png")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    options.bias_dtype = options.dtype if options.bias_dtype == "storage" else getattr(torch, options.bias_dtype)
    options.set = ["quick"] if options.quick else options.set or ["gpu" if gpu else "cpu"]
    options.effort = Effort(2, 2, 0) if options.quick else Effort(5, 60, options.seconds or (0.15 if gpu else 2.0))
    return options


def main() -> int:
    options = parse_arguments()
    deadline = time.monotonic() + options.budget
    report: dict[str, Any] = {
        "environment": environment(options.device),
        "dtype": str(options.dtype).removeprefix("torch."),
        "bias_dtype": str(options.bias_dtype).removeprefix("torch."),
        "rounds": options.rounds,
        "results": [],
    }
    start = time.monotonic()
    problems = [p for name in options.set for p in SETS[name]]
    for names in rounds(options.variants):
        for index, problem in enumerate(problems):
            found = run_problem(problem, names, deadline, options)
            if index < len(report["results"]):
                report["results"][index]["variants"].update(found["variants"])
            else:
                report["results"].append(found)
            report["seconds"] = round(time.monotonic() - start, 1)
            if options.output:
                write(report, options.output)
    if options.output:
        from plot import draw

        draw(report, options.output.with_suffix(".png"))
    slower = slower_than_eager(report["results"])
    print(f"slower than eager PyTorch: {'; '.join(slower) or 'none'}; {time.monotonic() - start:.0f} s in all")
    return int(any("failed" in r["variants"].get(OURS, {}) for r in report["results"]))


if __name__ == "__main__":
    raise SystemExit(main())
