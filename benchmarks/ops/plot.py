#!/usr/bin/env python3
"""Draws a report of evo_attention.py: for each use, the times of every variant as multiples of ours.

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
from labels import LABELS, OURS  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

PANELS = {"forward_ms": "forward", "backward_ms": "backward", "peak_mib": "peak memory"}
UNITS = {"forward_ms": "ms", "backward_ms": "ms", "peak_mib": "MiB"}


def _bars(results: list[dict[str, Any]], key: str) -> list[tuple[float, str, float, float]]:
    """(position, variant, value, ratio to ours) from the top down, a gap after each use."""
    bars, position = [], 0.0
    for result in results:
        ours = result["variants"].get(OURS, {}).get(key)
        for name in LABELS:
            value = result["variants"].get(name, {}).get(key)
            if value is not None and ours:
                bars.append((position, name, value, value / ours))
                position += 1
        position += 1
    return bars


def draw(report: dict[str, Any], path: Path) -> None:
    results = [r for r in report["results"] if "forward_ms" in r["variants"].get(OURS, {})]
    if not results:
        print("no picture: ours was measured on no problem", file=sys.stderr)
        return
    colours = dict(zip(LABELS, plt.get_cmap("tab10").colors, strict=False))
    rows = len(_bars(results, "forward_ms")) + len(results)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 1.5 + 0.19 * rows), sharey=True, squeeze=False)
    for axis, (key, title) in zip(axes[0], PANELS.items(), strict=True):
        bars = _bars(results, key)
        axis.barh([b[0] for b in bars], [b[3] for b in bars], 0.9, color=[colours[b[1]] for b in bars])
        for position, _, value, ratio in bars:
            axis.annotate(f" {value:.0f}" if value >= 100 else f" {value:.3g}", (ratio, position), va="center", fontsize=6)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.margins(x=0.12, y=0.01)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{title}, times ours ({UNITS[key]} beside the bars)", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    ticks, position = [], 0.0
    for result in results:
        count = sum("forward_ms" in v for v in result["variants"].values())
        ticks.append((position + (count - 1) / 2, result["problem"]["name"].replace(", ", ",\n")))
        position += count + 1
    axes[0][0].set_yticks([t[0] for t in ticks], [t[1] for t in ticks], fontsize=8)
    shown = [n for n in LABELS if any("forward_ms" in r["variants"].get(n, {}) for r in results)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[n]) for n in shown]
    figure.legend(handles, [LABELS[n] for n in shown], loc="lower center", ncols=len(shown), fontsize=8)
    environment = report["environment"]
    figure.suptitle(
        f"EvoAttention, {report['dtype']}, bias {report['bias_dtype']}, {environment['device']}, "
        f"PyTorch {environment['packages']['torch']}, {environment['date'][:10]}, commit {environment['commit']}",
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
