"""EvoAttention of the CUDA backend beside eager PyTorch, SDPA and FlexAttention, side by side in one run.

    python benchmarks/ops/evo_attention_cuda.py OUTPUT.json [--peers eager,sdpa,flex] [--shapes NAME,...]

Times are medians in milliseconds of single calls between CUDA events; calls rotate over several sets of inputs. Peers are
timed through autograd with preallocated cotangents; backward is the time of torch.autograd.grad. peak is the MiB that
forward plus backward allocate above the inputs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cuda"))
from attention_shim import Shim, Unsupported, find_library  # noqa: E402

# name: batch, rows, queries, keys, heads, dim, bias groups (0 = none, 1 = shared by the batch), mask
SHAPES = {
    "triangle 384": (1, 384, 384, 384, 4, 32, 1, True),
    "triangle 768": (1, 768, 768, 768, 4, 32, 1, True),
    "diffusion": (48, 1, 384, 384, 16, 48, 1, False),
    "single": (1, 1, 384, 384, 16, 24, 1, True),
    "MSA row": (1, 128, 384, 384, 8, 32, 1, True),
    "MSA column": (1, 384, 128, 128, 8, 32, 0, True),
    "atom windows": (108, 48, 32, 128, 4, 32, 108, False),
}
DTYPE = torch.bfloat16


class Inputs:
    def __init__(self, shape) -> None:
        b, s, nq, nk, h, d, groups, masked = shape
        make = lambda *size: torch.randn(size, device="cuda", dtype=torch.float32).to(DTYPE)
        self.q, self.k, self.v = make(b, s, nq, h, d), make(b, s, nk, h, d), make(b, s, nk, h, d)
        self.dout = make(b, s, nq, h, d)
        self.bias = torch.randn(groups, 1, h, nq, nk, device="cuda") if groups else None
        self.mask = torch.rand(b, s, 1, 1, nk, device="cuda") < 0.9 if masked else None
        self.scale = d**-0.5

    def leaves(self):
        found = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]
        if self.bias is not None:
            found.append(self.bias.detach().requires_grad_())
        return found


def median_ms(call, sets, warmup: int, repetitions: int) -> float:
    for i in range(warmup):
        call(sets[i % len(sets)])
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repetitions)]
    for i, (start, end) in enumerate(events):
        start.record()
        call(sets[i % len(sets)])
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


class Ours:
    def __init__(self, shim: Shim, name: str) -> None:
        self.shim, self.name = shim, name

    def prepare(self, x: Inputs):
        out, dq = torch.empty_like(x.q), torch.empty_like(x.q)
        dk, dv = torch.empty_like(x.k), torch.empty_like(x.v)
        b, s, nq, h, _ = x.q.shape
        lse = torch.empty(b, s, h, nq, device="cuda")
        dbias = torch.empty_like(x.bias) if x.bias is not None else None
        return x, out, lse, dq, dk, dv, dbias

    def forward(self, state) -> None:
        x, out, lse = state[:3]
        self.shim.forward(self.name, x.q, x.k, x.v, x.mask, x.bias, out, lse, x.scale)

    def backward(self, state) -> None:
        x, out, lse, dq, dk, dv, dbias = state
        self.shim.backward(self.name, x.q, x.k, x.v, x.mask, x.bias, out, lse, x.dout, dq, dk, dv, dbias, x.scale)


class Peer:
    def __init__(self, function) -> None:
        self.function = function

    def prepare(self, x: Inputs):
        leaves = x.leaves()
        return [x, leaves, None]

    def forward(self, state) -> None:
        x, leaves, _ = state
        state[2] = None
        bias = leaves[3] if len(leaves) > 3 else None
        state[2] = self.function(*leaves[:3], x.mask, bias, x.scale)

    def backward(self, state) -> None:
        x, leaves, out = state
        torch.autograd.grad(out, leaves, x.dout, retain_graph=True)


def eager(q, k, v, mask, bias, scale):
    scores = torch.einsum("bsihd,bsjhd->bshij", q * scale, k)
    if bias is not None:
        scores = scores + bias.to(q.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9)
    return torch.einsum("bshij,bsjhd->bsihd", scores.softmax(-1), v)


def sdpa(q, k, v, mask, bias, scale):
    term = None
    if bias is not None:
        term = bias.to(q.dtype)
    if mask is not None:
        additive = torch.where(mask, 0.0, -1e9).to(q.dtype)
        term = additive if term is None else term + additive
    b, s = q.shape[:2]
    q, k, v = (x.transpose(2, 3).flatten(0, 1) for x in (q, k, v))
    if term is not None:
        term = term.expand(b, s, q.shape[1], q.shape[2], k.shape[2]).flatten(0, 1)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=term, scale=scale)
    return out.transpose(1, 2).unflatten(0, (b, s))


_flex = None


def flex(q, k, v, mask, bias, scale):
    global _flex
    from torch.nn.attention.flex_attention import flex_attention

    if _flex is None:
        _flex = torch.compile(flex_attention, dynamic=False)
    b, s = q.shape[:2]
    q, k, v = (x.transpose(2, 3).flatten(0, 1) for x in (q, k, v))
    term = bias.to(q.dtype)[:, 0] if bias is not None else None
    keys = torch.where(mask, 0.0, -1e9).to(q.dtype).reshape(b * s, -1) if mask is not None else None
    shared = bias is not None and bias.shape[0] == 1

    def score(value, row, head, i, j):
        if term is not None:
            value = value + term[0 if shared else row // s, head, i, j]
        return value if keys is None else value + keys[row, j]

    return _flex(q, k, v, score_mod=score, scale=scale).transpose(1, 2).unflatten(0, (b, s))


def measure(entry, shape, sets: int) -> dict:
    states = [entry.prepare(Inputs(shape)) for _ in range(sets)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    entry.forward(states[0])
    entry.backward(states[0])
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    first = median_ms(entry.forward, states, 3, 5)
    repetitions = max(5, min(60, int(300 / max(first, 1e-3))))
    forward = median_ms(entry.forward, states, 3, repetitions)
    for state in states:
        entry.forward(state)
    backward = median_ms(entry.backward, states, 3, repetitions)
    return {"forward": round(forward, 4), "backward": round(backward, 4), "peak_mib": round(peak, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--peers", default="eager,sdpa,flex")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    arguments = parser.parse_args()
    shim = Shim(find_library(), poison=False)
    entries = {name: Ours(shim, name) for name in shim.names}
    entries |= {name: Peer(globals()[name]) for name in arguments.peers.split(",") if name}
    results = {}
    for name in arguments.shapes.split(","):
        shape = SHAPES[name]
        results[name] = {"shape": shape}
        sets = 2 if "768" in name or name == "diffusion" else 4
        for label, entry in entries.items():
            try:
                results[name][label] = measure(entry, shape, sets)
            except (Unsupported, RuntimeError, torch.OutOfMemoryError) as error:
                results[name][label] = {"failed": str(error).splitlines()[0][:300]}
            torch.cuda.empty_cache()
            print(f"{name:14} {label:12} {results[name][label]}", flush=True)
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    report = {
        "what": "EvoAttention, bf16, medians in ms", "device": torch.cuda.get_device_name(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit.stdout.strip(),
        "command": " ".join(sys.argv), "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "results": results}
    pathlib.Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
