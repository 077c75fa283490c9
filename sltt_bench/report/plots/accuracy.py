"""Plot: test accuracy by epoch and by training time, and when each method reaches a common accuracy."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.groups import Group, MethodResult
from sltt_bench.report.plots import style
from sltt_bench.report.statistics import Floats


@dataclass(frozen=True)
class Curve:
    """One method's accuracy after each epoch: mean over the seeds that have the epoch."""

    method: str
    epoch: Floats
    accuracy: Floats
    spread: Floats
    """Standard deviation over seeds; 0 for one seed."""
    trained_s: Floats
    """Training time until the end of the epoch, evaluation not counted, mean over seeds."""
    n: int

    def first_at(self, accuracy: float) -> int:
        """Index of the first epoch with at least this accuracy."""
        return int(np.argmax(self.accuracy >= accuracy))


def curves(group: Group) -> list[Curve]:
    """The curves of all finished methods with accuracy for at least two epochs; random data has none."""
    if group.key.synthetic:
        return []
    return [curve for result in group.finished if (curve := _curve(result)) is not None]


def common_accuracy(found: list[Curve]) -> float:
    """The highest accuracy that every curve reaches."""
    return min(float(curve.accuracy.max()) for curve in found)


def _curve(result: MethodResult) -> Curve | None:
    rows = result.epochs.dropna(subset=["test_top1"])
    if rows["epoch"].nunique() < 2:
        return None
    rows = rows.sort_values("epoch", kind="stable")
    cell = [rows["run"], rows["cell_id"]]
    rows = rows.assign(trained_s=rows["train_s"].astype(float).groupby(cell).cumsum())
    by_epoch = rows.astype({"test_top1": float}).groupby("epoch")
    return Curve(
        method=result.method,
        epoch=by_epoch["epoch"].first().to_numpy(dtype=float),
        accuracy=by_epoch["test_top1"].mean().to_numpy(),
        spread=np.nan_to_num(by_epoch["test_top1"].std().to_numpy(dtype=float)),
        trained_s=by_epoch["trained_s"].mean().to_numpy(),
        n=len(result.seeds),
    )


def draw_accuracy(found: list[Curve], width: Width) -> Figure:
    """Accuracy by epoch and by training time; a mark where a method first reaches the common accuracy."""
    figure, (by_epoch, by_time) = style.panels(width, 2, 2.1)
    scale = numbers.scale_for("s", [float(curve.trained_s[-1]) for curve in found])
    target = common_accuracy(found)
    for place, curve in enumerate(found):
        width_of_line, _ = style.weight(place)
        _draw(by_epoch, curve, curve.epoch, target, width_of_line)
        _draw(by_time, curve, curve.trained_s / scale.factor, target, width_of_line)
    for axes in (by_epoch, by_time):
        axes.axhline(100 * target, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)))
        style.plain_ticks(axes, "y")
        axes.set_ylabel("test top-1 [%]")
        axes.margins(x=0.02)
    by_epoch.set_title("Accuracy by epoch")
    by_epoch.set_xlabel("epoch")
    style.plain_ticks(by_epoch, "x", whole=True)
    by_time.set_title("Accuracy by training time")
    by_time.set_xlabel(f"training time [{scale.unit}]")
    by_time.set_xlim(left=0)
    style.plain_ticks(by_time, "x")
    style.legend_below(figure, by_epoch, width)
    return figure


def _draw(axes: Axes, curve: Curve, x: Floats, target: float, linewidth: float) -> None:
    colour = style.colour(curve.method)
    top, spread = 100 * curve.accuracy, 100 * curve.spread
    axes.plot(
        x, top, color=colour, linestyle=style.line(curve.method), label=curve.method, linewidth=linewidth
    )
    if spread.any():
        axes.fill_between(x, top - spread, top + spread, color=colour, alpha=0.16, linewidth=0)
    reached = curve.first_at(target)
    marker = style.marker(curve.method)
    axes.plot(x[reached], top[reached], marker, color=colour, markeredgecolor=style.SURFACE, zorder=5)
