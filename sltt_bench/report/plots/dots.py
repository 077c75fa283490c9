"""The drawing of comparisons as points: a row each, with its interval, its single pairs and the value that is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sltt_bench.report.document import Width
from sltt_bench.report.plots import style

_LABEL_WIDTH = {"column": 22, "double": 44}
"""Characters of a label's line."""
_LOG_ABOVE = 10
"""From which span on an axis of ratios is logarithmic: the wide intervals of few pairs would leave all else in one place."""


@dataclass(frozen=True)
class Dot:
    """One comparison; all of its numbers are in the axis's unit."""

    label: str
    value: float | None
    """None: not comparable, which the text says."""
    text: str = ""
    """The value in words."""
    spread: tuple[float, float] | None = None
    """An interval, or what half of the measurements lie within."""
    target: float | None = None
    """The largest value that is wanted."""
    pairs: tuple[float, ...] = ()
    """Each single measurement."""
    method: str = ""
    """Whose colour it has; '' is the plain ink."""
    details: tuple[str, ...] = ()
    """What may be added to the label to tell it from others, most telling first."""

    def named(self, others: Sequence["Dot"]) -> "Dot":
        """This one with the details in its label that tell it from the others of the same label."""
        label, alike = self.label, [other for other in others if other.label == self.label]
        for place, detail in enumerate(self.details):
            if any(other.details[place] != detail for other in alike):
                label += f", {detail}"
                alike = [other for other in alike if other.details[place] == detail]
        return replace(self, label=label)

    @property
    def missed(self) -> bool:
        """Whether a target is not met."""
        return self.target is not None and self.value is not None and self.value > self.target

    @property
    def extent(self) -> list[float]:
        """Every number of its row."""
        alone = [number for number in (self.value, self.target) if number is not None]
        return [*alone, *(self.spread or ()), *self.pairs]


@dataclass(frozen=True)
class DotPanel:
    """Comparisons over one axis."""

    title: str
    label: str
    dots: tuple[Dot, ...]
    no_change: float
    """Where nothing differs: marked."""
    from_zero: bool = True
    """Whether it is an axis of ratios: from 0, or logarithmic."""


def draw_dots(panels: Sequence[DotPanel], width: Width) -> Figure:
    """A row for each comparison; a thick tick where the target lies, hollow and red what misses it."""
    labels = [style.wrapped(dot.label, _LABEL_WIDTH[width]) for dot in panels[0].dots]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure, axes = style.panels(width, len(panels), 0.95 + 0.1 * len(labels) + 0.15 * lines)
    for place, panel in zip(axes, panels, strict=True):
        _panel(place, panel, labels)
        if width == "double" and place is not axes[0]:
            place.tick_params(labelleft=False)
    if entries := _legend([dot for panel in panels for dot in panel.dots]):
        figure.legend(
            handles=entries, loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.5
        )
    return figure


def _panel(axes: Axes, panel: DotPanel, labels: Sequence[str]) -> None:
    extent = [panel.no_change, *(number for dot in panel.dots for number in dot.extent)]
    _across(axes, min(extent), max(extent), ratios=panel.from_zero)
    axes.axvline(panel.no_change, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
    for row, dot in enumerate(panel.dots):
        _dot(axes, row, dot)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=style.INK, labelsize=6.5)
    axes.grid(visible=False, axis="y")
    axes.set_title(panel.title)
    axes.set_xlabel(panel.label)


def _across(axes: Axes, low: float, high: float, *, ratios: bool) -> None:
    """The x axis from the smallest number to the largest, with room for words beyond it."""
    if ratios and low > 0 and high / low > _LOG_ABOVE:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.25)
        style.log_ticks(axes.xaxis)
        return
    low = 0.0 if ratios else low
    room = high - low or 1.0
    axes.set_xlim(low if ratios else low - 0.1 * room, high + 0.25 * room)
    style.plain_ticks(axes, "x", most=4)


def _dot(axes: Axes, row: int, dot: Dot) -> None:
    colour = style.FAILED if dot.missed else style.colour(dot.method) if dot.method else style.INK
    if dot.spread:
        label = f"spread of {dot.label}"
        axes.plot(dot.spread, [row, row], color=colour, linewidth=1.2, zorder=3, label=label)
    if dot.pairs:
        axes.plot(
            dot.pairs, [row + 0.22] * len(dot.pairs), ".", color=colour, markersize=3.6, markeredgewidth=0, alpha=0.6
        )  # fmt: skip
    if dot.target is not None:
        target: dict[str, Any] = {"color": style.SOFT_INK, "markersize": 11, "markeredgewidth": 2.2}
        axes.plot([dot.target], [row], "|", zorder=2, **target)
    if dot.value is None:
        axes.text(0.02, row, dot.text, transform=axes.get_yaxis_transform(), va="center", fontsize=6.5)
        return
    face = style.SURFACE if dot.missed else colour
    axes.plot(
        [dot.value], [row], "o", markersize=5.5, color=face, markeredgecolor=colour, zorder=4, label=dot.label
    )
    axes.annotate(
        dot.text, (max(dot.extent), row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=6.5,
        color=style.FAILED if dot.missed else style.INK,
        bbox={"facecolor": style.SURFACE, "edgecolor": "none", "pad": 0.8},  # where it meets the line of no change
    )  # fmt: skip


def _legend(dots: Sequence[Dot]) -> list[Line2D]:
    """What the marks mean, where there are targets."""
    if all(dot.target is None for dot in dots):
        return []
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5}
    tick: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 9, "mew": 2.2}
    return [
        Line2D([], [], color=style.INK, label="met, or no target", **dot),
        Line2D([], [], color=style.SURFACE, markeredgecolor=style.FAILED, label="not met", **dot),
        Line2D([], [], color=style.SOFT_INK, label="target", **tick),
    ]
