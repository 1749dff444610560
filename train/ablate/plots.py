"""Plots of an ablation: the training loss of each cell, and each metric by cell. Needs the extra `plot`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.files import replacing
from qwen3_jax.train.ablate.runner import Outcome, read_metrics

_POINTS = 60  # of a curve


def write_plots(root: Path, table: Mapping[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """curves.png and metrics.png; gives their names. Nothing without matplotlib, or before there is a number."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    names = []
    plots: dict[str, Callable[[Any], bool]] = {
        "curves.png": lambda figure: _draw_curves(figure, root, table, outcomes),
        "metrics.png": lambda figure: _draw_metrics(figure, table),
    }
    for name, draw in plots.items():
        figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
        if draw(figure):
            with replacing(root / name) as partial:
                figure.savefig(partial, format="png")
            names.append(name)
    return names


def _draw_curves(figure: Any, root: Path, table: Mapping[str, Any], outcomes: Sequence[Outcome]) -> bool:
    """Mean over the seeds, and the range between them; a run that diverged is dashed and stands alone."""
    axes, drawn = figure.add_subplot(), False
    for number, row in enumerate(table["cells"]):
        color, curves = f"C{number % 10}", []
        for outcome in outcomes:
            if outcome.run.cell.name != row["cell"] or outcome.status == "missing":
                continue
            lines = read_metrics(root / "runs" / outcome.run.directory / "metrics.jsonl")
            if not lines:
                continue
            steps, losses = smoothed([line["step"] for line in lines], [line["loss"] for line in lines])
            if outcome.status == "finished":
                curves.append((steps, losses))
            else:
                axes.plot(steps, losses, color=color, linestyle="--", linewidth=0.8)
                drawn = True
        if curves:
            length = min(len(steps) for steps, _ in curves)
            stack = np.stack([losses[:length] for _, losses in curves])
            steps = curves[0][0][:length]
            axes.plot(steps, stack.mean(0), color=color, linewidth=1.2)
            axes.fill_between(steps, stack.min(0), stack.max(0), color=color, alpha=0.2, linewidth=0)
            drawn = True
        axes.plot([], [], color=color, label=row["cell"])
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_title(table["title"], fontsize=10)
    axes.legend(fontsize=7)
    return drawn


def _draw_metrics(figure: Any, table: Mapping[str, Any]) -> bool:
    """One panel a metric: a dot a run, the mean with its interval, and a cross where runs diverged."""
    metrics = [m for m in table["metrics"] if any(row["metrics"][m] for row in table["cells"])][:12]
    if not metrics:
        return False
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    cells = [row["cell"] for row in table["cells"]]
    figure.set_size_inches(4.2 * columns + 1.5, (0.28 * len(cells) + 1.0) * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel in panels.flat[len(metrics) :]:
        panel.set_visible(False)
    for panel, metric in zip(panels.flat, metrics, strict=False):
        for place, row in enumerate(table["cells"]):
            color, found = f"C{place % 10}", row["metrics"][metric]
            values = list(row["values"][metric].values())
            panel.plot(values, [place] * len(values), ".", color=color, markersize=4, alpha=0.6)
            if found:
                panel.errorbar(found["mean"], place, xerr=found["half"] or 0.0, fmt="o", color=color, capsize=3)
            if row["runs"].get("diverged"):
                panel.annotate("× diverged", (0.98, place), xycoords=("axes fraction", "data"), ha="right", fontsize=7)
        panel.set_title(metric, fontsize=9)
        panel.set_yticks(range(len(cells)), cells, fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.set_ylim(len(cells) - 0.5, -0.5)
    return True


def smoothed(steps: Sequence[int], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means over runs of equal length, at most 60 of them, at the last step of each.

    In: steps 1..120     Out: 60 points, each the mean of two steps
    """
    width = max(1, -(-len(steps) // _POINTS))
    count = len(steps) // width
    last = np.asarray(steps[: count * width]).reshape(count, width)[:, -1]
    return last, np.asarray(losses[: count * width], float).reshape(count, width).mean(1)
