"""The drawing of horizontal bars, in one piece or stacked."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sltt_bench.report.document import Width
from sltt_bench.report.plots import style


@dataclass(frozen=True)
class Bar:
    """One bar; lengths are in the axis's unit."""

    label: str
    parts: tuple[float, ...] = ()
    """Lengths from left to right; none: nothing is known."""
    text: str = ""
    """Beyond its end."""
    method: str = ""
    """Whose colour it has; '' gives each part one of the ramp's."""
    spread: tuple[float, float] | None = None
    """One standard deviation to both sides."""
    dots: tuple[float, ...] = ()
    """Each single seed; one dot: a single measurement."""
    failure: str = ""
    """Why there is no length, written into its row."""
    endless: bool = False
    """Whether what failed would have been longer than the axis."""


@dataclass(frozen=True)
class BarPanel:
    """Bars over one axis."""

    title: str
    label: str
    """Of the axis, with the unit in brackets."""
    bars: tuple[Bar, ...]
    parts: tuple[str, ...] = ()
    """The legend of stacked bars."""


def draw_bars(panels: Sequence[BarPanel], width: Width) -> Figure:
    """The panels; in two columns those beside the first do not repeat its labels."""
    legend = 0.3 if panels[0].parts else 0.0
    figure, axes = style.panels(width, len(panels), 0.62 + legend + 0.3 * len(panels[0].bars))
    for place, panel in zip(axes, panels, strict=True):
        _panel(place, panel)
        if width == "double" and place is not axes[0]:
            place.tick_params(labelleft=False)
    if panels[0].parts:
        style.legend_below(figure, axes, width)
    return figure


def _panel(axes: Axes, panel: BarPanel) -> None:
    ends = [max(sum(bar.parts), *(bar.spread or ()), *bar.dots, 0.0) for bar in panel.bars]
    widest = max(ends)
    axes.set_xlim(0, 1.42 * widest)
    for row, (bar, end) in enumerate(zip(panel.bars, ends, strict=True)):
        _bar(axes, row, bar)
        axes.text(end + 0.02 * widest, row, bar.text, va="center", fontsize=7)
    for number, part in enumerate(panel.parts):  # an entry of the legend, whatever the first bar lacks
        axes.barh(0, 0, color=_part_colour(number, len(panel.parts)), label=part)
    axes.set_yticks(range(len(panel.bars)), [bar.label for bar in panel.bars])
    axes.set_ylim(len(panel.bars) - 0.45, -0.55)
    axes.tick_params(axis="y", labelcolor=style.INK, labelsize=7.5)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    style.plain_ticks(axes, "x", most=4)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.label)


def _bar(axes: Axes, row: int, bar: Bar) -> None:
    if bar.failure:
        _failed(axes, row, bar)
        return
    left = 0.0
    for number, length in enumerate(bar.parts):
        colour = style.colour(bar.method) if bar.method else _part_colour(number, len(bar.parts))
        axes.barh(row, length, left=left, height=0.62, color=colour)
        left += length
    if bar.spread:
        low, high = bar.spread
        whisker = axes.errorbar(
            left, row, xerr=[[left - low], [high - left]], color=style.INK, linewidth=0.8, capsize=2
        )
        for part in whisker.get_children():  # to be seen on a bar of any colour
            part.set_path_effects([withStroke(linewidth=2, foreground=style.SURFACE)])
    if bar.dots:
        last = len(bar.dots) - 1
        rows = [row + 0.2 - 0.4 * place / last for place in range(last + 1)] if last else [row]
        axes.plot(bar.dots, rows, ".", color=style.INK, markersize=3, markeredgewidth=0, alpha=0.7)


def _part_colour(number: int, count: int) -> str:
    return style.ramp(number / max(count - 1, 1))


def _failed(axes: Axes, row: int, bar: Bar) -> None:
    right = axes.get_xlim()[1]
    if bar.endless:
        axes.barh(
            row, 1.1 * right, height=0.62, facecolor="none", edgecolor=style.FAILED, hatch="////", linewidth=0.8
        )  # fmt: skip
    axes.text(
        0.03 * right, row, bar.failure, va="center", fontsize=7, color=style.FAILED,
        bbox={"facecolor": style.SURFACE, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
