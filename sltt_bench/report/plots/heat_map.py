"""The drawing of numbers in a grid, as colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sltt_bench.report.document import Width
from sltt_bench.report.plots import style

MOST_ROW_NAMES = 24
_WRITTEN = 60
"""Up to so many cells each has its number written into it."""


@dataclass(frozen=True)
class HeatMap:
    """One grid; several in one figure share the colours' scale."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: "np.ndarray[Any, Any]"
    """[rows, columns]; NaN is blank."""
    x_label: str
    value_label: str
    largest: float
    """The upper end of the colours' scale."""


def draw_heat_maps(maps: Sequence[HeatMap], width: Width) -> Figure:
    """The grids side by side, with one colour bar."""
    rows = max(len(one.rows) for one in maps)
    figure, axes = style.panels(width, len(maps), max(1.6, 0.35 + 0.13 * min(rows, 40)))
    high = maps[0].largest
    low = min(float(np.nanmin(one.values, initial=high)) for one in maps)
    for number, (place, one) in enumerate(zip(axes, maps, strict=True)):
        image = place.imshow(one.values, aspect="auto", cmap=style.RAMP, vmin=low, vmax=high)
        place.grid(visible=False)
        place.set_title(one.title)
        place.set_xlabel(one.x_label)
        place.set_xticks(range(len(one.columns)), list(one.columns))
        named = range(0, len(one.rows), -(-len(one.rows) // MOST_ROW_NAMES))
        shown = width == "column" or number == 0
        place.set_yticks(list(named), [one.rows[row] if shown else "" for row in named])
        place.tick_params(axis="y", labelsize=6)
        if one.values.size <= _WRITTEN:
            _write_values(place, one, (low + high) / 2)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(maps[0].value_label, color=style.SOFT_INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _write_values(axes: Axes, one: HeatMap, middle: float) -> None:
    for row, column in np.ndindex(one.values.shape):
        value = one.values[row, column]
        if np.isfinite(value):
            ink = style.ON_BRIGHT if value > middle else style.ON_DIM
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=5.5, color=ink)
