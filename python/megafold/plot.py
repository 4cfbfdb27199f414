"""The picture of a run: how the loss fell, and a predicted structure on the true one.

    python -m megafold.plot RUN_DIR            writes RUN_DIR/training.png and prints its path
    python python/megafold/plot.py RUN_DIR     the same without loading the compiled library

Reads RUN_DIR/log.csv and, when the run ended with a prediction, RUN_DIR/prediction/*.safetensors.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import LogFormatter  # noqa: E402
from safetensors import safe_open  # noqa: E402

TRUE_COLOUR = "#9aa0a6"
LOSS_COLOUR = "#1f5fbf"
NOT_A_LOSS = {"step", "loss", "learning_rate", "gradient_norm", "seconds", "wait_seconds", "entries"}
TERM_COLOURS = ("#d1495b", "#2a9d8f", "#e9a23b", "#6a4c93", "#5c7080")


class PlainLogFormatter(LogFormatter):
    """Matplotlib's choice of ticks to label, written as 0.2 instead of 2e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def read_log(file: Path) -> dict[str, np.ndarray]:
    """The numeric columns of log.csv."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ValueError(f"{file}: holds no step")
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "entries"}


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential mean, started without bias, over about a thirtieth of the run."""
    decay = 1 - 1 / max(1.0, len(values) / 30)
    total, weight = 0.0, 0.0
    result = np.empty_like(values)
    for index, value in enumerate(values):
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result[index] = total / weight
    return result


def draw_losses(axes: plt.Axes, log: dict[str, np.ndarray]) -> None:
    step, loss = log["step"], log["loss"]
    axes.plot(step, loss, color=LOSS_COLOUR, alpha=0.18, linewidth=0.8)
    axes.plot(step, smoothed(loss), color=LOSS_COLOUR, linewidth=2.2, label="total (weighted)")
    terms = [name for name in log if name not in NOT_A_LOSS and np.any(log[name] > 0)]
    for name, colour in zip(terms, TERM_COLOURS * (1 + len(terms) // len(TERM_COLOURS)), strict=False):
        axes.plot(step, smoothed(log[name]), color=colour, linewidth=1.2, label=name.replace("_", " "))
    positive = np.concatenate([log[name][log[name] > 0] for name in (*terms, "loss")])
    if positive.max() > 8 * positive.min():
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(PlainLogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (bold: running mean)")
    axes.set_title(f"Loss over {int(step[-1])} steps: {smoothed(loss)[min(len(loss) - 1, 9)]:.3g} "
                   f"to {smoothed(loss)[-1]:.3g}")
    axes.grid(True, which="major", alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def read_prediction(file: Path) -> dict[str, np.ndarray | str]:
    with safe_open(str(file), framework="numpy") as tensors:
        result: dict[str, np.ndarray | str] = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        metadata = tensors.metadata() or {}
        result["entry"] = metadata.get("entry", file.stem)
        result["samples"] = metadata.get("samples", "1")
    return result


def best_view(points: np.ndarray) -> np.ndarray:
    """Coordinates along the principal axes: the widest extent lies across the picture."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    if np.linalg.det(axes) < 0:  # keep the structure's hand
        axes[2] = -axes[2]
    return axes


def chain_runs(asym_id: np.ndarray, resolved: np.ndarray) -> list[np.ndarray]:
    """Index ranges of consecutive resolved tokens of one chain."""
    breaks = np.flatnonzero((np.diff(asym_id) != 0) | (resolved[1:] != resolved[:-1])) + 1
    return [run for run in np.split(np.arange(len(asym_id)), breaks) if len(run) and resolved[run[0]]]


def draw_structure(axes: plt.Axes, prediction: dict[str, np.ndarray | str]) -> None:
    centre = prediction["center_atom"].astype(int)
    polymer = prediction["is_polymer"].astype(bool)
    resolved = prediction["resolved"][centre].astype(bool)
    true, predicted = prediction["true"][centre], prediction["predicted"][centre]
    view = best_view(true[resolved])
    middle = true[resolved].mean(axis=0)
    true, predicted = (true - middle) @ view.T, (predicted - middle) @ view.T
    colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(centre)))
    for run in chain_runs(prediction["asym_id"], resolved & polymer):
        axes.plot(*true[run].T, color=TRUE_COLOUR, linewidth=4, alpha=0.55, solid_capstyle="round")
        for first, second in zip(run[:-1], run[1:], strict=True):
            axes.plot(*predicted[[first, second]].T, color=colours[first], linewidth=2)
    ligand = resolved & ~polymer
    if ligand.any():
        axes.scatter(*true[ligand].T, color=TRUE_COLOUR, s=30, alpha=0.6)
        axes.scatter(*predicted[ligand].T, color="#d1495b", s=14)
    error = np.sqrt(np.mean(np.sum((true[resolved] - predicted[resolved]) ** 2, axis=1)))
    which = "" if prediction["samples"] == "1" else f", nearest of {prediction['samples']} samples"
    axes.set_title(f"{str(prediction['entry']).upper()}: predicted (coloured, first residue dark) on the true structure\n"
                   f"(grey), {error:.1f} Å over {int(resolved.sum())} token centres{which}", fontsize="medium")
    spread = np.concatenate([true[resolved], predicted[resolved]])
    extent = np.maximum(np.ptp(spread, axis=0), 1)
    for limits, low, size in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), spread.min(axis=0), extent,
                                 strict=True):
        limits(low, low + size)
    axes.set_box_aspect(extent, zoom=1.05)
    axes.set_axis_off()
    axes.set_proj_type("ortho")
    axes.view_init(elev=90, azim=-90)  # the plane of the two widest extents


def draw_run(run: Path) -> Path:
    """Writes <run>/training.png and returns its path."""
    log = read_log(run / "log.csv")
    predictions = sorted((run / "prediction").glob("*.safetensors"))
    figure = plt.figure(figsize=(13 if predictions else 7.5, 5.6), layout="constrained")
    grid = figure.add_gridspec(1, 2 if predictions else 1)
    draw_losses(figure.add_subplot(grid[0, 0]), log)
    if predictions:
        draw_structure(figure.add_subplot(grid[0, 1], projection="3d"), read_prediction(predictions[-1]))
    target = run / "training.png"
    partial = run / ".training.png.partial"
    figure.savefig(partial, dpi=130, format="png")
    plt.close(figure)
    partial.replace(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m megafold.plot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/demo")
    arguments = parser.parse_args()
    if not (arguments.run / "log.csv").is_file():
        sys.exit(f"plot: {arguments.run}/log.csv does not exist; name the folder of a run")
    print(f"picture: {draw_run(arguments.run)}")


if __name__ == "__main__":
    main()
