"""Times and peak memory of a function, on a CUDA device or on the CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

MEBIBYTE = 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _time_on_gpu(call: Callable[[int], None], repetitions: int, prepare: Callable[[int], None]) -> list[float]:
    pairs = []
    for i in range(repetitions):
        prepare(i)
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


def median_ms(
    call: Callable[[int], None], device: str, repetitions: int, warmup: int, prepare: Callable[[int], None] = lambda _: None
) -> float:
    """Median time of call(i); prepare(i) runs before each, outside the clock. i chooses among rotated inputs."""
    run = _time_on_gpu if device == "cuda" else _time_on_cpu
    run(call, warmup, prepare)
    return statistics.median(run(call, repetitions, prepare))


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
