#!/usr/bin/env python3
"""The tables of a page, made from the JSON that they show: never copied by hand.

    python benchmarks/ops/table.py README.md            # rewrites the tables in place
    python benchmarks/ops/table.py --check README.md    # status 1 when one is out of date

A page says where a table goes and which report it shows:

    <!-- table: benchmarks/results/evo_attention_h200.json -->
    ... replaced ...
    <!-- /table -->
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from labels import LABELS, OURS

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def _number(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}"


def _cell(result: dict[str, Any] | None) -> str:
    if result is None or "skipped" in result:
        return ""
    if "failed" in result:
        return "failed"
    return f"{_number(result['forward_ms'])} / {_number(result['backward_ms'])}"


def _shape(p: dict[str, Any]) -> str:
    if "Nq" not in p:
        return p["name"]
    lengths = str(p["Nq"]) if p["Nq"] == p["Nk"] else f"{p['Nq']} x {p['Nk']}"
    return f"{p['name']} [{p['B']}, {p['S']}, {lengths}, {p['H']}, {p['D']}]"


def _memory(result: dict[str, Any]) -> str:
    peaks = [result["variants"].get(n, {}).get("peak_mib") for n in (OURS, "eager")]
    text = " / ".join("" if peak is None else _number(peak) for peak in peaks)
    return text + (f" ({_number(result['results_mib'])})" if "results_mib" in result else "")


def _kind(report: dict[str, Any]) -> str:
    rounds = report.get("rounds", 1)
    return "median ms" if rounds == 1 else f"lowest of {rounds} median ms"


def table(report: dict[str, Any], source: str) -> str:
    environment, results = report["environment"], report["results"]
    names = [n for n in LABELS if any("forward_ms" in r["variants"].get(n, {}) for r in results)]
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in packages if name != "numpy")
    attention = "bias_dtype" in report
    bias = f", bias {report['bias_dtype']}" if attention else ""
    threads = f", {environment['threads']} threads" if "threads" in environment and "cuda" not in environment else ""
    results_alone = " (results alone)" if any("results_mib" in r for r in results) else ""
    lines = [
        f"Forward / backward, {_kind(report)}, {report['dtype']}{bias}, {environment['device']}{threads}"
        + (f", driver {environment['driver']}" if environment.get("driver") else "")
        + f"; {versions}; commit {environment['commit']}, {environment['date'][:10]}; [all of it]({source}).",
        "",
        f"| {'use [B, S, N, H, D]' if attention else 'operator'} | "
        + " | ".join(LABELS[n] for n in names)
        + f" | peak MiB, ours / eager{results_alone} |",
        "| --- |" + " --- |" * (len(names) + 1),
    ]
    for result in results:
        cells = " | ".join(_cell(result["variants"].get(n)) for n in names)
        lines.append(f"| {_shape(result['problem'])} | {cells} | {_memory(result)} |")
    return "\n".join(lines) + "\n"


def rewrite(path: Path) -> str:
    """The page with every table made anew."""

    def replace(match: re.Match[str]) -> str:
        source = ROOT / match.group(2)
        inside = path.resolve().is_relative_to(ROOT)
        link = os.path.relpath(source, path.resolve().parent) if inside else match.group(2)
        return match.group(1) + table(json.loads(source.read_text()), link) + match.group(3)

    return BLOCK.sub(replace, path.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, say whether a table is out of date")
    parser.add_argument("pages", nargs="+", type=Path)
    options = parser.parse_args()
    stale = 0
    for path in options.pages:
        page = path.read_text()
        fresh = rewrite(path)
        if fresh == page:
            continue
        if options.check:
            print(f"{path}: a table is out of date; run python benchmarks/ops/table.py {path}")
            stale = 1
        else:
            path.write_text(fresh)
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
