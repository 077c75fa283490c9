"""Plot: the one figure of a study, a panel for each measure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sltt_bench.common.format import Scale, Unit, scale_for
from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.fields import axis_words
from sltt_bench.report.groups import rule_and_number
from sltt_bench.report.plots import style
from sltt_bench.report.plots.lines import PERCENT, ticks_at
from sltt_bench.report.statistics import Stat

_MEASURES: dict[str, tuple[str, Unit | None]] = {
    "test_top1": ("test top-1", "accuracy"),
    "epoch_s": ("epoch time", "s"),
    "peak_tensor_bytes": ("peak live tensors", "bytes"),
    "firing_rate": ("firing rate", "share"),
    "learning_curve": ("test top-1", "accuracy"),
    "cosine": ("cosine(g, g_s)", None),
    "temporal_share": ("‖g − g_s‖ / ‖g‖", None),
    "multiplications": ("multiplications an epoch", "count"),
    "estimated_peak_bytes": ("estimated peak", "bytes"),
}
"""Measure → its words and unit; None for a number without."""
_COUNTED = ("peak_tensor_bytes", "multiplications", "estimated_peak_bytes")
"""Measures that are the same in every repetition: one seed is as good as many."""
_TICK_ROOM = 90
"""Characters below all panels together, gaps included, that need not be turned."""
_LOG_ABOVE, _LINEAR_TO = 8, 1e9
"""From which span on the x axis is logarithmic; of epochs, and of times and bytes, which grow linearly in T, never."""
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class StudyLine:
    """What has one label: x → mean over seeds. x None is a level that belongs to every x."""

    label: str
    method: str | None
    """Whose colour it has; None: it is no method's."""
    points: Mapping[Any, Stat]
    seeds: Mapping[Any, tuple[float, ...]] = field(default_factory=dict)
    """x → what the means are of."""


@dataclass(frozen=True)
class Drawn:
    """A panel with its lines."""

    measure: str
    x: str
    title: str
    lines: tuple[StudyLine, ...]

    @property
    def heading(self) -> str:
        """The panel's title, or what it shows."""
        return self.title or _MEASURES[self.measure][0]

    @property
    def means(self) -> list[float]:
        """Every mean, in the measure's base unit."""
        return [point.mean for line in self.lines for point in line.points.values()]

    @property
    def counts(self) -> set[int]:
        """Over how many seeds its points are."""
        return {point.n for line in self.lines for point in line.points.values()}

    @property
    def across(self) -> tuple[str, Unit | None]:
        """Words and unit of the x axis."""
        return _MEASURES.get(self.x) or (axis_words(self.x), None)

    @property
    def categories(self) -> list[Any] | None:
        """The places on the x axis if they are no numbers, in order; else None."""
        places = list(dict.fromkeys(p for line in self.lines for p in line.points if p is not None))
        numeric = all(isinstance(p, int | float) and not isinstance(p, bool) for p in places)
        return None if numeric else in_order(places)

    def text(self, mean: Stat) -> tuple[str, str]:
        """The mean with its unit, and the standard deviation."""
        unit = _MEASURES[self.measure][1]
        if unit is None:
            text = numbers.fraction(mean.mean, float(round(mean.mean)))
            return text, numbers.spread_beside(text, mean.std) if mean.std is not None else ""
        if unit == "accuracy":
            text, spread = numbers.accuracy_and_spread(mean)
            return f"{text} %", spread
        scale = scale_for(unit, [mean.mean])
        text, spread = numbers.mean_and_spread(mean, scale)
        return f"{text} {scale.unit}".strip(), spread

    def place_text(self, place: Any) -> str:
        """A place on the x axis in words."""
        if place is None:
            return "any"
        if self.across[1]:
            return scale_for(self.across[1], [place]).text(place)
        return f"{place:g}" if isinstance(place, float) else str(place)


def in_order(places: Iterable[Any]) -> list[Any]:
    """Numbers in rising order, off before on, few layers (2×64) before many; else as they come."""
    distinct = list(dict.fromkeys(places))
    if all(isinstance(place, int | float) and not isinstance(place, bool) for place in distinct):
        return sorted(distinct)
    if set(distinct) == {"on", "off"}:
        return ["off", "on"]
    shapes = [re.fullmatch(r"(\d+)×(\d+)", str(place)) for place in distinct]
    if all(shapes):
        return sorted(distinct, key=lambda place: [int(number) for number in str(place).split("×")])
    return distinct


def family_and_number(method: str) -> tuple[str, float | None]:
    """ "sltt-k4-unbiased" → ("sltt-kN-unbiased", 4.0); a name without a number is its own rule."""
    rule, number = rule_and_number(method)
    if number is None:
        return method, None
    return f"{rule}N" + ("-unbiased" if method.endswith("-unbiased") else ""), number


def draw_study(panels: Sequence[Drawn], width: Width) -> Figure:
    """One panel beside the other; the legend names each line once."""
    figure, axes = style.panels(width, len(panels), 2.4)
    lines = [line for panel in panels for line in panel.lines]
    labels = list(dict.fromkeys(line.label for line in lines))
    others = list(dict.fromkeys(line.label for line in lines if line.method is None))
    own = style.looks(line.method for line in lines if line.method is not None)
    looks = [[_look(line, labels, others, own) for line in panel.lines] for panel in panels]
    tick_room = _TICK_ROOM // (len(panels) if width == "double" else 3)
    for place, panel, of_panel in zip(axes, panels, looks, strict=True):
        alike = [mean for other in panels if other.measure == panel.measure for mean in other.means]
        _draw(place, panel, of_panel, style.Named(tuple(labels)), tick_room, alike)
    style.share_scale(axes, "y", [panel.measure for panel in panels])
    style.legend_below(figure, axes, width, labels)
    return figure


def _look(
    line: StudyLine, labels: Sequence[str], others: Sequence[str], own: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """A method's own; of lines that share its colour, and of those of no method, marks and dashes of the line's place."""
    if line.method is None:
        variant = others.index(line.label)
        inks = (style.INK, *style.OTHER_INKS)
        colour = inks[variant % len(inks)]
    else:
        same = [label for label in labels if label.split(", ")[0] == line.label.split(", ")[0]]
        if len(same) < 2:
            return own[line.method]
        variant, colour = same.index(line.label), style.colour(line.method)
    return {"color": colour, "marker": _MARKERS[variant % 6], "linestyle": _LINES[variant % 4]}


def _draw(
    axes: Axes,
    panel: Drawn,
    looks: Sequence[dict[str, Any]],
    named: style.Named,
    tick_room: int,
    means: Sequence[float],
) -> None:
    """`means`: of all panels of the measure, which share unit and scale."""
    (words, unit), (x_words, x_unit) = _MEASURES[panel.measure], panel.across
    standing = [place for line in panel.lines for place in line.points]
    xs = [place for place in standing if place is not None]
    scale = scale_for(unit, means) if unit else Scale(1.0, "")
    x_scale = scale_for(x_unit, xs) if x_unit else Scale(1.0, "")
    categories = panel.categories
    step = min(0.12, 0.6 / len(panel.lines)) if len(set(standing)) < len(standing) else 0.0
    for number, (line, look) in enumerate(zip(panel.lines, looks, strict=True)):
        on_axis = panel.x == "method" and line.label in line.points  # the axis says which it is
        legend = f"_{line.label}" if on_axis else named.legend(line.label)
        if (level := line.points.get(None)) is not None:
            _level(axes, level, scale, look["color"], legend, told_apart=line.label in named)
        points = {place: point for place, point in line.points.items() if place is not None}
        if not points:
            continue
        if categories is None:
            places = [place / x_scale.factor for place in points]
        else:
            shift = (number - (len(panel.lines) - 1) / 2) * step
            places = [categories.index(place) + shift for place in points]
            look = {**look, "linestyle": "none"}
        ys = [point.mean / scale.factor for point in points.values()]
        if line.label not in named and not on_axis:
            unnamed = style.UNNAMED if categories is None else style.UNNAMED_POINT
            axes.plot(places, ys, label=legend, **unnamed)
            continue
        dots = [
            (where, value / scale.factor)
            for where, (place, point) in zip(places, points.items(), strict=True)
            for value in line.seeds.get(place, ())
            if _lengths(point)[1]
        ]
        if dots:
            axes.plot(*zip(*dots, strict=True), color=look["color"], **style.SEED)
        lengths = zip(*map(_lengths, points.values()), strict=True)
        below, above = ([side / scale.factor for side in sides] for sides in lengths)
        thickness, size = style.weight(number if categories is None else 1)
        axes.errorbar(
            places, ys, [below, above] if any(above) else None, label=legend, markeredgecolor=style.SURFACE,
            markeredgewidth=0.6, elinewidth=0.9, linewidth=thickness, markersize=size, **look,
        )  # fmt: skip
    axes.set_title(panel.title)
    of_seeds = "" if panel.measure in _COUNTED else numbers.of_single_seeds(panel.counts)
    axes.set_ylabel(style.label(f"{words} [{scale.unit}]" if scale.unit else words, of_seeds, "y"))
    axes.set_xlabel(f"{x_words} [{x_scale.unit}]" if x_scale.unit else x_words)
    axes.margins(y=0.12)
    from_zero = unit in ("bytes", "s", "count")
    if from_zero and min(means) > 0 and max(means) / min(means) > 32:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        if from_zero:
            style.from_zero(axes, "y")
        style.plain_ticks(axes, "y", within=PERCENT if unit in ("accuracy", "share") else style.ANY)
    if categories is not None:
        _categories(axes, categories, tick_room)
    elif panel.x in _MEASURES:
        style.plain_ticks(axes, "x")
    elif not xs:
        axes.set_xticks([])  # levels alone
    else:
        linear = panel.x == "epoch" or from_zero
        ticks_at(axes, sorted(set(xs)), _LINEAR_TO if linear else _LOG_ABOVE)
        axes.margins(x=0.08)


def _categories(axes: Axes, categories: Sequence[Any], room: int) -> None:
    """The x axis of places that are no numbers; turned where their words need more room."""
    names = [str(place) for place in categories]
    axes.set_xticks(range(len(names)), names)
    if len(names) > 2 and sum(len(name) + 2 for name in names) > room:
        for text in axes.get_xticklabels():
            text.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)


def _level(
    axes: Axes, level: Stat, scale: Scale, colour: str, legend: str | None, *, told_apart: bool
) -> None:
    mean = level.mean / scale.factor
    if not told_apart:
        axes.axhline(mean, label=legend, **style.UNNAMED)
        return
    axes.axhline(mean, linestyle="--", linewidth=1.2, color=colour, label=legend)
    if level.spread:
        low, high = (end / scale.factor for end in level.spread)
        axes.axhspan(low, high, color=colour, alpha=0.07, linewidth=0)


def _lengths(point: Stat) -> tuple[float, float]:
    """Of the error bar below a mean and above it; 0 for a single seed."""
    low, high = point.spread or (point.mean, point.mean)
    return point.mean - low, high - point.mean
