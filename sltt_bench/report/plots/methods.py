"""Plot: peak memory and epoch time of each method, with their ratios to the baseline."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.groups import Group, MethodResult, NotComparable
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots import style


def draw_methods(group: Group, baseline: str, width: Width) -> Figure:
    """One horizontal bar for each method and figure; a method that ran out of memory is hatched."""
    memory = group.headline_memory()
    shown = [name for name in (memory, "epoch_s") if name]
    results = [r for r in group.methods.values() if r.finished or r.out_of_memory]
    figure, axes = style.panels(width, len(shown), 0.62 + 0.3 * len(results))
    for place, name in zip(axes, shown, strict=True):
        _panel(place, group, results, name, baseline)
        if width == "double" and place is not axes[0]:
            place.tick_params(labelleft=False)
    return figure


def _panel(axes: Axes, group: Group, results: list[MethodResult], metric: str, baseline: str) -> None:
    stats = {r.method: stat for r in results if (stat := r.stat(metric))}
    scale = numbers.scale_of_metric(metric, [stat.mean for stat in stats.values()])
    widest = max(stat.mean + (stat.std or 0) for stat in stats.values()) / scale.factor
    axes.set_xlim(0, 1.42 * widest)
    for row, result in enumerate(results):
        stat = stats.get(result.method)
        if stat is None:
            _failed(axes, row, open_ended=metric != "epoch_s")
            continue
        length, spread = stat.mean / scale.factor, (stat.std or 0) / scale.factor
        axes.barh(row, length, height=0.62, color=style.colour(result.method))
        if spread:
            axes.errorbar(length, row, xerr=spread, color=style.INK, linewidth=0.8, capsize=2)
        label = scale.number(stat.mean) + _ratio_text(group, metric, result.method, baseline)
        axes.text(length + spread + 0.02 * widest, row, label, va="center", fontsize=7)
    axes.set_yticks(range(len(results)), [result.method for result in results])
    axes.set_ylim(len(results) - 0.45, -0.55)
    axes.tick_params(axis="y", labelcolor=style.INK, labelsize=7.5)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    style.plain_ticks(axes, "x", most=4)
    phase = f"{group.phase} epoch" if metric == "epoch_s" else METRICS[metric].label
    axes.set_title("Time per epoch" if metric == "epoch_s" else "Peak memory")
    axes.set_xlabel(f"{phase} [{scale.unit}]")


def _failed(axes: Axes, row: int, *, open_ended: bool) -> None:
    """Memory ran out: the bar of its memory goes beyond the axis, and there is no time to draw."""
    right = axes.get_xlim()[1]
    if open_ended:
        axes.barh(
            row, 1.1 * right, height=0.62, facecolor="none", edgecolor=style.FAILED, hatch="////", linewidth=0.8
        )  # fmt: skip
    axes.text(
        0.03 * right, row, "out of memory", va="center", fontsize=7, color=style.FAILED,
        bbox={"facecolor": style.SURFACE, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _ratio_text(group: Group, metric: str, method: str, baseline: str) -> str:
    estimate = group.ratio(metric, method, baseline)
    if isinstance(estimate, NotComparable) or method == baseline:
        return ""
    return f"  ({numbers.ratio(estimate.value)})"
