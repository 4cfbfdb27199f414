"""What evo_attention.cc measures, through PyTorch on the CPU: the composition of operators, and scaled_dot_product_attention.

    OMP_NUM_THREADS=2 python benchmarks/evo_attention_eager.py [repetitions]

scaled_dot_product_attention takes bias and mask as one float tensor of every row, head, query and key; adding the two up
is part of the time. Times and memory are taken as dense_ops_eager.py takes them; every gradient is computed, that of the
bias included.
"""

import json
import pathlib
import sys

import torch
from dense_ops_eager import peak_mib, run
from ops.variants import eager, sdpa
from torch import nn


class EvoAttention(nn.Module):
    def __init__(self, attention, B, S, Nq, Nk, H, D, mask, bias, ending=0):
        super().__init__()
        if mask != 1:
            raise ValueError(f"a benchmark shape has mask {mask}, expected 1")
        self.attention = attention

        def operand(n):
            x = torch.randn(B, n, S, H, D).transpose(1, 2) if ending else torch.randn(B, S, n, H, D)
            return x.requires_grad_()

        self.inputs = [operand(Nq), operand(Nk), operand(Nk)]
        self.inputs.append(torch.where(torch.rand(B, S, 1, 1, Nk) < 0.9, 0.0, float("-inf")))
        if bias:
            self.inputs.append(torch.randn(1 if bias == 2 else B, 1, H, Nq, Nk, requires_grad=True))

    def forward(self, q, k, v, mask, bias=None):
        return self.attention(q, k, v, mask, bias)


def main():
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    cases = pathlib.Path(__file__).resolve().parents[1] / "tests" / "cases" / "evo_attention.json"
    print(f"{'attention':24} {'float32':72} {'fwd ms':>9} {'bwd ms':>9} {'both ms':>9} {'MiB':>9}")
    for shape in json.loads(cases.read_text())["benchmark"]:
        for attention in (eager, sdpa):
            torch.manual_seed(0)
            module = EvoAttention(attention, **shape)
            dy = torch.randn_like(module(*module.inputs))
            times = [run(module, dy) for _ in range(repetitions)]
            best = [min(column) for column in zip(*times, strict=True)]
            text = json.dumps(shape, separators=(",", ":"))
            memory = peak_mib(module, dy)
            print(f"{attention.__name__:24} {text:72} {best[0]:9.2f} {best[1]:9.2f} {best[2]:9.2f} {memory:9.1f}", flush=True)


if __name__ == "__main__":
    main()
