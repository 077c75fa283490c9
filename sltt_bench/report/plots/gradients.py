"""Plots: how much of the gradient travels through space, against T, τ, depth, training and K."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sltt_bench.report.document import Width
from sltt_bench.report.plots import style

RAMP = "viridis"
_RAMP_END = 0.86
"""Short of the ramp's yellow, which is too pale for a line."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST_LAYER_NAMES = 24
FULL_AGREEMENT = 1.0


@dataclass(frozen=True)
class Line:
    """One line of a plot: its label, and (x, y, spread) for each point; the spread may be NaN."""

    label: str
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One panel of lines."""

    title: str
    lines: tuple[Line, ...]
    x_label: str
    y_label: str
    limit: float | None = FULL_AGREEMENT
    """A level that is marked: full agreement."""
    logarithmic: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A grid of cosines."""

    title: str
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    cosines: "np.ndarray[Any, Any]"
    """[layers, timesteps]; NaN where a gradient is 0."""


def draw_lines(panels: Sequence[Panel], width: Width) -> Figure:
    """Panels that share their lines' colours and one legend."""
    figure, axes = style.panels(width, len(panels), 2.25)
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    looks = {label: _look(number, len(labels)) for number, label in enumerate(labels)}
    for place, panel in zip(axes, panels, strict=True):
        _lines(place, panel, looks)
    if len(labels) > 1:
        style.legend_below(figure, axes[0], width)
    return figure


def draw_heat_maps(maps: Sequence[HeatMap], width: Width) -> Figure:
    """Cosines by layer (rows, the input's end on top) and T (columns); maps share the colour scale."""
    rows = max(len(one.layers) for one in maps)
    figure, axes = style.panels(width, len(maps), max(1.6, 0.35 + 0.13 * min(rows, 40)))
    low = min(float(np.nanmin(one.cosines, initial=FULL_AGREEMENT)) for one in maps)
    for number, (place, one) in enumerate(zip(axes, maps, strict=True)):
        image = place.imshow(one.cosines, aspect="auto", cmap=RAMP, vmin=low, vmax=FULL_AGREEMENT)
        place.grid(visible=False)
        place.set_title(one.title)
        place.set_xlabel("T, time steps")
        place.set_xticks(range(len(one.timesteps)), [str(steps) for steps in one.timesteps])
        every = -(-len(one.layers) // MOST_LAYER_NAMES)
        named = range(0, len(one.layers), every)
        show_names = width == "column" or number == 0
        place.set_yticks(list(named), [one.layers[i] for i in named] if show_names else [""] * len(named))
        place.tick_params(axis="y", labelsize=6)
        if len(one.layers) * len(one.timesteps) <= 60:
            _write_values(place, one, low)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label("cosine(g, g_s)", color=style.SOFT_INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _look(number: int, count: int) -> Mapping[str, Any]:
    share = number / (count - 1) if count > 1 else 0.3
    colour = to_hex(matplotlib.colormaps[RAMP](_RAMP_END * share))
    return {"color": colour, "marker": _MARKERS[number % len(_MARKERS)]}


def _lines(axes: Axes, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    if panel.limit is not None:
        axes.axhline(panel.limit, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)))
    for line in panel.lines:
        xs, ys, spreads = (np.array(values, dtype=float) for values in zip(*line.points, strict=True))
        axes.errorbar(
            xs, ys, spreads if np.isfinite(spreads).any() else None, label=line.label, elinewidth=0.8,
            markeredgecolor=style.SURFACE, markeredgewidth=0.6, **looks[line.label],
        )  # fmt: skip
    axes.set_title(panel.title)
    axes.set_ylabel(panel.y_label)
    axes.set_xlabel(panel.x_label)
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        style.plain_ticks(axes, "y")
    values = sorted({x for line in panel.lines for x, _, _ in line.points})
    axes.xaxis.set_major_locator(FixedLocator(_spaced(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.06, y=0.1)


def _spaced(values: Sequence[float]) -> list[float]:
    """The values that can carry a tick without touching the one before."""
    room = (values[-1] - values[0]) / 12
    shown = [values[0]]
    for value in values[1:]:
        if value - shown[-1] >= room:
            shown.append(value)
    return shown


def _write_values(axes: Axes, one: HeatMap, low: float) -> None:
    middle = (low + FULL_AGREEMENT) / 2
    for row, column in np.ndindex(one.cosines.shape):
        value = one.cosines[row, column]
        if np.isfinite(value):
            ink = style.INK if value > middle else style.SURFACE
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=5.5, color=ink)
