"""Times and peak memory of a function, on a CUDA device or on the CPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

MEBIBYTE = 2**20


# The GPU spins this long before each timed call, so that the host has queued all of the call when its clock starts:
# what is timed is the device's work, not the wait for the host to launch it.
SPIN_CYCLES = 2_000_000


def _time_on_gpu(call: Callable[[int], None], repetitions: int, prepare: Callable[[int], None]) -> list[float]:
    pairs = []
    for i in range(repetitions):
        prepare(i)
        torch.cuda._sleep(SPIN_CYCLES)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(i)
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in pairs]


def _time_on_cpu(call: Callable[[int], None], repetitions: int, prepare: Callable[[int], None]) -> list[float]:
    times = []
    for i in range(repetitions):
        prepare(i)
        start = time.perf_counter()
        call(i)
        times.append((time.perf_counter() - start) * 1e3)
    return times


@dataclass(frozen=True)
class Effort:
    """How long one time is measured: at least `fewest` calls, at most `most`, and about `seconds` in all between."""

    fewest: int
    most: int
    seconds: float


def median_ms(
    call: Callable[[int], None], device: str, effort: Effort, prepare: Callable[[int], None] = lambda _: None
) -> tuple[float, int]:
    """Median time of call(i) and how many calls it is of; prepare(i) runs before each, outside the clock. i chooses among
    rotated inputs."""
    run = _time_on_gpu if device == "cuda" else _time_on_cpu
    first = min(run(call, 2, prepare))
    repetitions = max(effort.fewest, min(effort.most, int(effort.seconds * 1e3 / max(first, 1e-3))))
    run(call, max(1, repetitions // 5), prepare)
    return statistics.median(run(call, repetitions, prepare)), repetitions


def peak_mib(call: Callable[[int], None], device: str) -> float:
    """Memory one call takes beyond what was allocated before it: the peak of PyTorch's allocator, which on the CPU is added
    up from the allocations that the profiler records. What a library takes from malloc by itself is not seen."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call(0)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / MEBIBYTE
