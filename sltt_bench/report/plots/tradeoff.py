"""Plot: what accuracy costs in memory and time, and which methods are on the Pareto front."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.groups import Group
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots import style
from sltt_bench.report.statistics import Stat, pareto_front


def draw_tradeoff(group: Group, width: Width) -> Figure:
    """Accuracy over memory and over time; for random data memory over time. Filled: on the front."""
    memory = group.headline_memory() or ""
    pairs = [(memory, "last_test_top1"), ("epoch_s", "last_test_top1")]
    if not any(result.stat("last_test_top1") for result in group.finished):
        pairs = [("epoch_s", memory)]
    figure, axes = style.panels(width, len(pairs), 2.2)
    for place, (x, y) in zip(axes, pairs, strict=True):
        _panel(place, group, x, y)
    style.legend_below(figure, axes[0], width)
    return figure


def _panel(axes: Axes, group: Group, x: str, y: str) -> None:
    points = {
        result.method: (a, b)
        for result in group.finished
        if (a := result.stat(x)) is not None and (b := result.stat(y)) is not None
    }
    scales = [
        numbers.scale_of_metric(name, [pair[i].mean for pair in points.values()])
        for i, name in enumerate((x, y))
    ]
    front = group.pareto_front
    _front_line(axes, points, scales, METRICS[y].better)
    for method, pair in points.items():
        (at, width), (height, rise) = (
            (stat.mean / scale.factor, (stat.std or 0) / scale.factor)
            for stat, scale in zip(pair, scales, strict=True)
        )
        colour = style.colour(method)
        axes.errorbar(at, height, rise or None, width or None, ecolor=colour, elinewidth=0.9, fmt="none")
        face = colour if method in front else style.SURFACE
        axes.plot(
            [at], [height], style.marker(method), markersize=6.5, color=face, markeredgecolor=colour,
            markeredgewidth=1.4, label=method, linestyle="none",
        )  # fmt: skip
    names = {"epoch_s": f"{group.phase} epoch time", "last_test_top1": "test top-1"}
    for which, name, scale in zip(("x", "y"), (x, y), scales, strict=True):
        label = names.get(name, METRICS[name].label)
        getattr(axes, f"set_{which}label")(f"{label} [{scale.unit}]")
        style.plain_ticks(axes, "x" if which == "x" else "y", most=4)
    axes.margins(0.14)
    style.from_zero(axes, "x", 0.14)
    if METRICS[y].unit == "bytes":
        style.from_zero(axes, "y", 0.14)
    axes.set_title("Accuracy over time" if (x, y) == ("epoch_s", "last_test_top1") else _title(y))


def _title(y: str) -> str:
    return "Accuracy over memory" if y == "last_test_top1" else "Memory over time"


def _front_line(
    axes: Axes, points: dict[str, tuple[Stat, Stat]], scales: list[numbers.Scale], better: str
) -> None:
    """The front of this panel's two figures as a step line: nothing measured lies beyond it."""
    sign = -1 if better == "higher" else 1
    members = pareto_front({name: (a.mean, sign * b.mean) for name, (a, b) in points.items()})
    corners = sorted((points[name][0].mean, points[name][1].mean) for name in members)
    axes.step(
        [a / scales[0].factor for a, _ in corners],
        [b / scales[1].factor for _, b in corners],
        where="post",
        color=style.SOFT_INK,
        linewidth=0.8,
        linestyle=(0, (3, 2)),
        zorder=1,
    )
