"""What dense_ops.cc measures, as ordinary PyTorch modules on the CPU.

    OMP_NUM_THREADS=2 python benchmarks/dense_ops_eager.py [repetitions]

Times are the least of the repetitions; memory is the largest resident size seen during one of them above that before it
(gradients of the parameters included), sampled every half millisecond. What malloc keeps of earlier repetitions is given
back to the system first: it would serve this one unseen.
"""

import ctypes
import json
import os
import pathlib
import sys
import threading
import time

import torch
from torch import nn
from torch.nn import functional


class LayerNormLinear(nn.Module):
    def __init__(self, M, K, C):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(K), nn.Linear(K, C)
        self.inputs = [torch.randn(M, K, requires_grad=True)]

    def forward(self, x):
        return self.linear(self.norm(x))


class Transition(nn.Module):
    def __init__(self, M, K, E):
        super().__init__()
        self.norm = nn.LayerNorm(K)
        self.gate, self.value = nn.Linear(K, E * K, bias=False), nn.Linear(K, E * K, bias=False)
        self.out = nn.Linear(E * K, K, bias=False)
        self.inputs = [torch.randn(M, K, requires_grad=True)]

    def forward(self, x):
        u = self.norm(x)
        return self.out(functional.silu(self.gate(u)) * self.value(u))


class TriangleMultiplication(nn.Module):
    def __init__(self, B, N, C, hidden):
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(C), nn.LayerNorm(hidden)
        for name in ("ap", "ag", "bp", "bg"):
            setattr(self, name, nn.Linear(C, hidden, bias=False))
        self.op, self.og = nn.Linear(hidden, C, bias=False), nn.Linear(C, C, bias=False)
        self.inputs = [torch.randn(B, N, N, C, requires_grad=True), torch.rand(B, N, N, 1)]

    def forward(self, x, mask):
        z = self.norm_in(x)
        a = mask * torch.sigmoid(self.ag(z)) * self.ap(z)
        b = mask * torch.sigmoid(self.bg(z)) * self.bp(z)
        t = torch.einsum("bikc,bjkc->bijc", a, b)
        return torch.sigmoid(self.og(z)) * self.op(self.norm_out(t))


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(module, dy):
    """Milliseconds of forward, backward and both."""
    module.zero_grad(set_to_none=True)
    for tensor in module.inputs:
        tensor.grad = None
    begin = time.perf_counter()
    y = module(*module.inputs)
    middle = time.perf_counter()
    y.backward(dy)
    end = time.perf_counter()
    return [1e3 * t for t in (middle - begin, end - middle, end - begin)]


def peak_mib(module, dy):
    module.zero_grad(set_to_none=True)
    for tensor in module.inputs:
        tensor.grad = None
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = resident_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(module, dy)
    done.set()
    watcher.join()
    return (peak - before) / 2**20


def main():
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    cases = pathlib.Path(__file__).resolve().parents[1] / "tests" / "cases"
    print(f"{'operator':24} {'float32':38} {'fwd ms':>9} {'bwd ms':>9} {'both ms':>9} {'MiB':>9}")
    for module_class, name in (
        (LayerNormLinear, "layer_norm_linear"),
        (Transition, "transition"),
        (TriangleMultiplication, "triangle_multiplication"),
    ):
        for shape in json.loads((cases / f"{name}.json").read_text())["benchmark"]:
            torch.manual_seed(0)
            module = module_class(**shape)
            dy = torch.randn_like(module(*module.inputs))
            times = [run(module, dy) for _ in range(repetitions)]
            best = [min(column) for column in zip(*times)]
            text = json.dumps(shape, separators=(",", ":"))
            print(f"{name:24} {text:38} {best[0]:9.2f} {best[1]:9.2f} {best[2]:9.2f} {peak_mib(module, dy):9.1f}")


if __name__ == "__main__":
    main()
