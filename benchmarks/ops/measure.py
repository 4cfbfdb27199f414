"""Times and peak memory of a function, on a CUDA device or on the CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MEBIBYTE = 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


class _ResidentPeak:
    """The largest resident size while the block runs, sampled every half millisecond."""

    def __enter__(self) -> _ResidentPeak:
        self.start = self.peak = _resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.0005):
            self.peak = max(self.peak, _resident_bytes())

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, _resident_bytes())
        self._done.set()
        self._thread.join()


def peak_mib(call: Callable[[int], None], device: str) -> float:
    """Memory one call takes beyond what was allocated before it: the allocator's peak on a GPU, on the CPU the growth
    of the process after its allocator gave every free page back."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE
    ctypes.CDLL(None).malloc_trim(0)
    with _ResidentPeak() as resident:
        call(0)
    return (resident.peak - resident.start) / MEBIBYTE
