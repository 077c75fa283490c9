"""The drawing of lines and points over two axes: what a figure shows is a list of panels of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sltt_bench.report.document import Width
from sltt_bench.report.groups import method_order
from sltt_bench.report.plots import style
from sltt_bench.report.statistics import Floats, Slope

SURVIVORS = "†"
"""Beside a mean over fewer seeds than were started: the others did not finish."""
Numbers = Sequence[float] | Floats
_TITLE_WIDTHS = (90, 44, 28, 24)
"""Characters of a line of a title where there are 1, 2, 3 or more panels; it has three lines at most."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Axis:
    """One axis of a panel."""

    label: str
    """With the unit in brackets."""
    from_zero: bool = False
    at: tuple[float, ...] = ()
    """The values that carry ticks, in rising order; none: a few round ones."""
    whole: bool = False
    """Whether round ticks are whole numbers."""
    logarithmic: bool = False
    within: tuple[float, float] = style.ANY
    """What its figures can be at all: an accuracy from 0 to 100 %. Other ticks have no number."""
    seeds: str = ""
    """Over how many seeds its figures are, where that is to be seen: "n = 1 seed"."""
    marked: float | None = None
    """Along x: where the panel has a dotted line from top to bottom."""


PERCENT = (0.0, 100.0)
ACCURACY = Axis("test top-1 [%]", within=PERCENT)


@dataclass(frozen=True)
class Line:
    """One line, or the points of one kind. Sequences belong together by place; coordinates are in the axes' units."""

    label: str
    """In the legend; '' keeps it out. Lines of one label look alike in all panels."""
    xs: Numbers = ()
    ys: Numbers = ()
    """NaN leaves a gap in the line."""
    spreads: Sequence[tuple[float, float]] = ()
    """(low, high) in y; NaN, or both the value: none."""
    x_spreads: Sequence[tuple[float, float]] = ()
    method: str = ""
    """Whose look it has; '' is a colour of the ramp, by the place of its label."""
    stroke: Literal["solid", "dashed", "dotted", "step", "level", "none"] = "solid"
    """`level`: across the whole panel at its only y; `step`: the y holds until the next x."""
    marks: Literal["filled", "hollow", "none"] = "filled"
    marker: str = ""
    """A shape in place of the look's own."""
    soft: bool = False
    """Whether it only helps to read the others: thin and grey."""
    band: bool = False
    """Whether spreads are shaded (else: bars)."""
    size: tuple[float, float] | None = None
    """Line width and marker size; None: methods that come later are thinner, so that equal lines are all seen."""
    dots: Sequence[tuple[float, float]] = ()
    """(x, y) of each single seed."""
    survivors: Sequence[bool] = ()
    """Where the mean leaves out seeds that did not finish."""
    ringed: Sequence[tuple[float, float]] = ()
    """Points that are picked out of it."""


_POINTS_OF_A_FIT = 33


def fitted_line(method: str, slope: Slope, factor: float = 1.0) -> Line:
    """A least-squares line over the values that it was fitted to: points enough that it is a curve on a logarithmic axis."""
    xs = np.geomspace(slope.first, slope.last, _POINTS_OF_A_FIT)
    ys = [slope.at(x) / factor for x in xs]
    return Line("", xs, ys, method=method, stroke="dotted", marks="none", size=(0.9, 0))


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    levels: tuple[tuple[float, str], ...] = ()
    """(y, words): dotted across the panel."""
    rings: tuple[tuple[float, float], ...] = ()
    """Points beyond which something failed."""
    remarks: tuple[str, ...] = ()
    """What failed, written into the panel."""


def draw_lines(panels: Sequence[Panel], width: Width) -> Figure:
    """The panels with one legend for all of them."""
    figure, axes = style.panels(width, len(panels), 2.2)
    lines = [line for panel in panels for line in panel.lines]
    labels = dict.fromkeys(line.label for line in lines if not line.method and not line.soft)
    methods = {line.method for line in lines if line.method}
    own = style.looks(sorted(methods, key=method_order))
    looks = {label: (_ramp_look(place, len(labels)), _SIZE) for place, label in enumerate(labels)}
    looks |= {method: (look, style.weight(place)) for place, (method, look) in enumerate(own.items())}
    named = _named([line for line in lines if line.label and not line.soft])
    for place, panel in zip(axes, panels, strict=False):
        _panel(place, panel, looks, named)
        columns = _TITLE_WIDTHS[min(len(panels), len(_TITLE_WIDTHS)) - 1]
        place.set_title(style.wrapped(panel.title, columns, most=3))
    style.share_scale(axes, "x", [panel.x.label for panel in panels])
    style.share_scale(axes, "y", [panel.y.label for panel in panels])
    in_order = sorted(lines, key=lambda line: (not line.method, method_order(line.method)))
    style.legend_below(figure, axes, width, [line.label for line in in_order])
    return figure


def _named(lines: Sequence[Line]) -> style.Named:
    """The baseline, which comes first; then filled marks: where some are hollow, they are what the figure is about."""
    ranked = [*lines[:1], *sorted(lines[1:], key=lambda line: line.marks == "hollow")]
    return style.Named(tuple(dict.fromkeys(line.label for line in ranked)))


def _ramp_look(place: int, count: int) -> dict[str, Any]:
    colour = style.ramp(place / (count - 1) if count > 1 else 0.3)
    return {"color": colour, "marker": _MARKERS[place % len(_MARKERS)], "linestyle": "-"}


Look = tuple[Mapping[str, Any], tuple[float, float]]
"""Colour, marker and stroke; line width and marker size."""
_SIZE = (1.4, 4.5)
_SOFT: Look = ({"color": style.SOFT_INK, "marker": "o", "linestyle": "-"}, (0.8, 3.2))


def _panel(axes: Axes, panel: Panel, looks: Mapping[str, Look], named: style.Named) -> None:
    """`looks`: of methods, and of the labels of other lines."""
    for line in panel.lines:
        if line.label and not line.soft and line.label not in named:
            _unnamed(axes, line, named.legend(line.label))
            continue
        look, size = _SOFT if line.soft else looks[line.method or line.label]
        _line(axes, line, look, line.size or size)
    for value, words in panel.levels:
        _level(axes, value, words)
    for ring in panel.rings:
        axes.plot(*ring, "o", markersize=10.5, mfc="none", mec=style.FAILED, zorder=6)
    if panel.x.marked is not None:
        axes.axvline(panel.x.marked, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)))
    _axis(axes, "x", panel.x)
    _axis(axes, "y", panel.y)
    if panel.remarks:
        _remark(axes, panel.remarks)


def _line(axes: Axes, line: Line, look: Mapping[str, Any], size: tuple[float, float]) -> None:
    colour, (width, mark) = look["color"], size
    xs, ys = np.asarray(line.xs, dtype=float), np.asarray(line.ys, dtype=float)
    how: dict[str, Any] = {"color": colour, "linewidth": width, "label": line.label or None}
    how["linestyle"] = _STROKES.get(line.stroke, look["linestyle"])
    if line.stroke == "level":
        axes.axhline(float(ys[0]), **how)
        return
    if line.stroke == "step":
        how["drawstyle"] = "steps-post"
    if len(xs) > _MOST_MARKS:
        how["markevery"] = math.ceil(len(xs) / _MOST_MARKS)
    if line.marks != "none":
        hollow = line.marks == "hollow"
        edge = colour if hollow else style.SURFACE
        how |= {"marker": line.marker or look["marker"], "markersize": mark, "markeredgecolor": edge}
        how["markerfacecolor"], how["markeredgewidth"] = (style.SURFACE, 1.2) if hollow else (colour, 0.6)
    if line.dots:
        x, y = zip(*line.dots, strict=True)
        axes.plot(x, y, color=colour, **style.SEED)
    for point in line.ringed:
        axes.plot(*point, "o", markersize=10, mfc="none", mec=colour, markeredgewidth=1.0, zorder=6)
    bars = _bars(line)
    if line.band or not bars:
        axes.plot(xs, ys, zorder=1 if line.soft else 3, **how)
    else:
        axes.errorbar(xs, ys, elinewidth=0.9, ecolor=colour, zorder=3, **bars, **how)
    if line.band and "yerr" in bars:
        low, high = np.asarray(line.spreads, dtype=float).T
        axes.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
    for x, y, left_out in zip(xs, ys, line.survivors, strict=False):
        if left_out:
            axes.annotate(SURVIVORS, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)


def _unnamed(axes: Axes, line: Line, label: str | None) -> None:
    """A line that is not told apart; points without a line are small."""
    look = style.UNNAMED_POINT if line.stroke == "none" else style.UNNAMED
    xs, ys = (line.xs, line.ys) if line.stroke != "level" else (axes.get_xlim(), [line.ys[0]] * 2)
    axes.plot(xs, ys, drawstyle="steps-post" if line.stroke == "step" else "default", label=label, **look)


_MOST_MARKS = 10
"""On a line; of a longer one every second point has one, or every third."""
_STROKES = {"dashed": (0, (4, 2)), "dotted": (0, (1, 1.5)), "level": "--", "none": "none"}


def _bars(line: Line) -> dict[str, Any]:
    """The lengths of error bars to both sides, by the name that matplotlib gives them; none where all are 0."""
    of_axes = {"yerr": (line.ys, line.spreads), "xerr": (line.xs, line.x_spreads)}
    lengths = {
        name: np.abs(np.asarray(spreads, dtype=float).T - np.asarray(values, dtype=float))
        for name, (values, spreads) in of_axes.items()
        if len(spreads)
    }
    return {name: sides for name, sides in lengths.items() if np.any(np.nan_to_num(sides) > 0)}


def _level(axes: Axes, value: float, words: str) -> None:
    axes.axhline(value, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)))
    if words:
        axes.annotate(
            words, (0.98, value), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
            horizontalalignment="right", fontsize=6.5, color=style.SOFT_INK,
        )  # fmt: skip


MOST_REMARKS = 4
"""Written into a panel; of more the first are, and the rest is counted."""


def _remark(axes: Axes, remarks: Sequence[str]) -> None:
    if len(remarks) > MOST_REMARKS:
        shown = MOST_REMARKS - 1
        remarks = [*remarks[:shown], f"and {len(remarks) - shown} more, in the table"]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.13 * len(remarks) * (high - low))  # room above the largest value
    axes.text(
        0.03, 0.98, "\n".join(remarks), transform=axes.transAxes, va="top", fontsize=6.5, color=style.FAILED,
        bbox={"facecolor": style.SURFACE, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _axis(axes: Axes, which: Literal["x", "y"], axis: Axis) -> None:
    getattr(axes, f"set_{which}label")(style.label(axis.label, axis.seeds, which))
    getattr(axes, f"set_{which}margin")(0.08 if which == "x" else 0.12)
    if axis.logarithmic:
        getattr(axes, f"set_{which}scale")("log")
        matplotlib_axis = axes.xaxis if which == "x" else axes.yaxis
        matplotlib_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        matplotlib_axis.set_minor_locator(NullLocator())
    elif axis.at:
        ticks_at(axes, axis.at)
    else:
        style.plain_ticks(axes, which, whole=axis.whole, within=axis.within)
    if axis.from_zero:
        style.from_zero(axes, which)


def ticks_at(axes: Axes, values: Sequence[float], log_above: float = 32) -> None:
    """Ticks of the x axis where values are, logarithmic where they span a factor of more than `log_above`; a 0 among
    shares stands one decade before the smallest.

    Memory grows linearly in T and batch size: up to there a reader should see a straight line.
    """
    places = list(values)
    smallest = min((value for value in values if value > 0), default=1.0)
    is_wide = max(values) / smallest > log_above
    if min(values) > 0 and is_wide:
        axes.set_xscale("log", base=2)
        places = [math.log2(value) for value in values]
    elif min(values) == 0 and smallest < 1 and is_wide:  # what is counted, as epochs are, stays linear
        axes.set_xscale("symlog", linthresh=smallest)
        places = [math.log10(value or smallest / 10) for value in values]
    room = (places[-1] - places[0]) / 9
    shown = [0]
    for number, place in enumerate(places):
        if place - places[shown[-1]] >= room > 0:
            shown.append(number)
    axes.xaxis.set_major_locator(FixedLocator([values[number] for number in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
