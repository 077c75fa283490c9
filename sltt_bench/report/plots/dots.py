"""Plot: ratios to baselines as points, beside the ratios that are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.plots import style

_LABEL_WIDTH = {"column": 22, "double": 44}
"""Characters of a label's line."""


@dataclass(frozen=True)
class Dot:
    """One ratio."""

    label: str
    ratio: float
    spread: tuple[float, float] | None = None
    """Within which half of the rounds lie."""
    target: float | None = None
    """The largest ratio that is wanted."""
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
        return self.target is not None and self.ratio > self.target


def draw_dots(dots: Sequence[Dot], width: Width) -> Figure:
    """A row for each ratio; a thick tick where the target lies, hollow and red what misses it."""
    labels = ["\n".join(wrap(dot.label, _LABEL_WIDTH[width])) for dot in dots]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure, (axes,) = style.panels(width, 1, 0.95 + 0.1 * len(dots) + 0.15 * lines)
    right = 1.2 * max(1.0, *(max(dot.ratio, dot.target or 0, (dot.spread or (0, 0))[1]) for dot in dots))
    axes.set_xlim(0, right)
    axes.axvline(1, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
    for row, dot in enumerate(dots):
        _dot(axes, row, dot)
    axes.set_yticks(range(len(dots)), labels)
    axes.set_ylim(len(dots) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=style.INK, labelsize=6.5)
    axes.grid(visible=False, axis="y")
    axes.set_title("Ratio to the baseline")
    axes.set_xlabel("subject ÷ baseline [×]")
    style.plain_ticks(axes, "x")
    figure.legend(
        handles=_legend(), loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.5
    )
    return figure


def _dot(axes: Axes, row: int, dot: Dot) -> None:
    colour = style.FAILED if dot.missed else style.INK
    if dot.spread:
        axes.plot(
            dot.spread, [row, row], color=colour, linewidth=1.2, zorder=3, label=f"spread of {dot.label}"
        )
    if dot.target is not None:
        axes.plot(
            [dot.target], [row], "|", color=style.SOFT_INK, markersize=11, markeredgewidth=2.2, zorder=2
        )
    face = style.SURFACE if dot.missed else colour
    axes.plot(
        [dot.ratio], [row], "o", markersize=5.5, color=face, markeredgecolor=colour, zorder=4, label=dot.label
    )
    edge = max(dot.ratio, (dot.spread or (0, 0))[1], dot.target or 0)
    axes.annotate(
        numbers.ratio(dot.ratio), (edge, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=6.5,
        color=colour,
    )  # fmt: skip


def _legend() -> list[Line2D]:
    dot = {"linestyle": "none", "marker": "o", "markersize": 5}
    return [
        Line2D([], [], color=style.INK, label="met, or no target", **dot),  # type: ignore[arg-type]
        Line2D([], [], color=style.SURFACE, markeredgecolor=style.FAILED, label="not met", **dot),  # type: ignore[arg-type]
        Line2D(
            [], [], color=style.SOFT_INK, linestyle="none", marker="|", markersize=9, mew=2.2, label="target"
        ),
    ]
