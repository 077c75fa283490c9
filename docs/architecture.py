"""Draws docs/figures/architecture.svg: `python docs/architecture.py`. The way of a cell, a number and a spike tensor."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUT = Path(__file__).parent / "figures" / "architecture.svg"
INK, FAINT = "#1f2933", "#7b8794"
CELL, NUMBER, TENSOR = "#2563ab", "#b45309", "#15803d"

BOXES: dict[str, tuple[float, float, float, str, str]] = {
    # name: (x, y, width, title, files)
    "recipe": (0.0, 6.0, 2.3, "recipe", "recipes/*.yaml\nplanning/recipe.py"),
    "plan": (2.9, 6.0, 2.0, "plan of cells", "planning/plan.py"),
    "runner": (5.5, 6.0, 2.0, "runner", "running/runner.py\nrunning/lanes.py"),
    "results": (5.5, 0.2, 2.0, "results", "results/"),
    "report": (2.9, 0.2, 2.0, "report", "report/"),
    "reader": (0.0, 0.2, 2.3, "you", "tables, plots, verdicts"),
    "worker": (9.0, 6.0, 2.2, "worker", "running/worker.py\nkinds/"),
    "experiment": (9.0, 4.1, 2.2, "experiment", "training/experiment.py"),
    "engine": (9.0, 2.2, 2.2, "engine", "training/engine.py"),
    "measure": (9.0, 0.2, 2.2, "profiler", "measure/"),
    "data": (12.2, 6.0, 2.2, "data", "data/"),
    "network": (12.2, 4.1, 2.2, "network", "models/\nneurons.py  backends/"),
    "method": (12.2, 2.2, 2.2, "method", "methods/\nunroll.py"),
}
ARROWS: list[tuple[str, str, str, str]] = [
    ("recipe", "plan", CELL, ""),
    ("plan", "runner", CELL, ""),
    ("runner", "worker", CELL, "one process\na cell"),
    ("worker", "experiment", CELL, ""),
    ("experiment", "engine", CELL, ""),
    ("data", "network", TENSOR, ""),
    ("network", "method", TENSOR, ""),
    ("method", "engine", TENSOR, ""),
    ("engine", "measure", NUMBER, ""),
    ("measure", "results", NUMBER, "the runner\nwrites rows"),
    ("results", "report", NUMBER, ""),
    ("report", "reader", NUMBER, ""),
]
HEIGHT = 1.0


def draw(axes: Axes) -> None:
    """All boxes and arrows."""
    process = FancyBboxPatch(
        (8.75, 0.0),
        6.05,
        7.45,
        boxstyle="round,pad=0.1",
        facecolor="#f4f6f8",
        edgecolor=FAINT,
        linestyle="--",
    )
    axes.add_patch(process)
    axes.text(14.65, 7.42, "a process of its own", ha="right", va="top", color=FAINT, fontsize=9)
    for x, y, width, title, files in BOXES.values():
        axes.add_patch(
            FancyBboxPatch((x, y), width, HEIGHT, boxstyle="round,pad=0.05", facecolor="white", edgecolor=INK)
        )
        axes.text(
            x + width / 2, y + 0.82, title, ha="center", va="center", weight="bold", color=INK, fontsize=11
        )
        axes.text(
            x + width / 2,
            y + 0.33,
            files,
            ha="center",
            va="center",
            color=FAINT,
            fontsize=8.5,
            family="monospace",
        )
    for start, end, colour, text in ARROWS:
        a, b = between(start, end)
        axes.add_patch(
            FancyArrowPatch(
                a, b, arrowstyle="-|>", mutation_scale=14, color=colour, linewidth=2, shrinkA=3, shrinkB=3
            )
        )
        if text:
            axes.text(
                min(a[0], b[0]) + 0.55,  # outside the frame of the process
                (a[1] + b[1]) / 2 + 0.12,
                text,
                ha="center",
                va="bottom",
                color=colour,
                fontsize=8.5,
            )
    for row, (colour, text) in enumerate(
        (
            (CELL, "a cell: one (kind, recipe, method, backend, seed)"),
            (TENSOR, "a spike tensor"),
            (NUMBER, "a number"),
        )
    ):
        axes.plot([0.1, 0.6], [4.6 - 0.5 * row] * 2, color=colour, linewidth=2.5)
        axes.text(0.8, 4.6 - 0.5 * row, text, va="center", color=INK, fontsize=10)
    axes.set_xlim(-0.2, 15.0)
    axes.set_ylim(-0.3, 7.7)
    axes.axis("off")


def between(start: str, end: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow leaves one box and reaches another."""
    (x1, y1, width1, *_), (x2, y2, width2, *_) = BOXES[start], BOXES[end]
    if x1 + width1 < x2:
        return (x1 + width1, y1 + HEIGHT / 2), (x2, y2 + HEIGHT / 2)
    if x2 + width2 < x1:
        return (x1, y1 + HEIGHT / 2), (x2 + width2, y2 + HEIGHT / 2)
    return (x1 + width1 / 2, y1), (x2 + width2 / 2, y2 + HEIGHT)


def main() -> None:
    """Write the figure."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sltt-bench", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(12, 6.1), layout="constrained")
    draw(axes)
    figure.savefig(OUT, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
