#!/usr/bin/env python3
"""Draws a report of evo_attention.py: time and memory of every variant, a group of bars a problem.

    python benchmarks/ops/plot.py results.json results.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = {"forward_ms": "forward [ms]", "backward_ms": "backward [ms]", "peak_mib": "peak memory [MiB]"}


def draw(report: dict[str, Any], path: Path) -> None:
    results = report["results"]
    variants = [n for n in results[0]["variants"] if any("forward_ms" in r["variants"][n] for r in results)]
    figure, axes = plt.subplots(len(PANELS), 1, figsize=(2 + 1.6 * len(results), 10), sharex=True)
    width = 0.8 / max(1, len(variants))
    for axis, (key, label) in zip(axes, PANELS.items(), strict=True):
        for i, name in enumerate(variants):
            heights = [r["variants"][name].get(key, float("nan")) for r in results]
            axis.bar([x + i * width for x in range(len(results))], heights, width, label=name)
        axis.set_yscale("log")
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(ncols=4, fontsize="small")
    ticks = [x + 0.4 - width / 2 for x in range(len(results))]
    axes[-1].set_xticks(ticks, [r["problem"]["name"] for r in results], rotation=20, ha="right")
    environment = report["environment"]
    figure.suptitle(f"EvoAttention, {report['dtype']}, {environment['device']}, PyTorch {environment['torch']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
