"""Plots: estimated peaks against T and batch size, measured ones over them, and what takes the memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sltt_bench.format import format_bytes
from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots import style
from sltt_bench.report.plots.sweeps import value_axis

CAUSES: dict[str, tuple[str, ...]] = {
    "weights": ("parameter_bytes", "optimizer_state_bytes", "gradient_bytes"),
    "inputs": ("input_bytes",),
    "neuron state": ("neuron_state_bytes",),
    "saved activations": ("activation_bytes",),
    "temporaries": ("temporary_bytes",),
}
"""Causes of live tensors as they are drawn and listed → columns of estimates.csv."""

_AXES = {"timesteps": "T, time steps", "batch_size": "batch size"}
_MEASURED_MARKS = {"peak_tensor_bytes": "o", "peak_allocated_bytes": "D"}


@dataclass(frozen=True)
class PeakPanel:
    """One panel: peaks against one field."""

    against: str
    """timesteps or batch_size."""
    fixed: str
    """The other one, in words."""
    estimated: Mapping[str, Sequence[tuple[float, float]]]
    """Method → (T or batch size, bytes)."""
    measured: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    """Measured figure → method → (T or batch size, bytes)."""
    slopes: bool = False
    """Whether each line's slope stands in its label."""
    rooms: Sequence[float] = ()
    """Memories into which things were to fit, bytes."""


@dataclass(frozen=True)
class Bar:
    """One method's peak by cause, in bytes."""

    method: str
    causes: Mapping[str, float]


def draw_peaks(panels: Sequence[PeakPanel], width: Width) -> Figure:
    """Dashed lines with hollow marks are estimates; filled marks were measured."""
    figure, axes = style.panels(width, len(panels), 2.25)
    for place, points in zip(axes, panels, strict=True):
        _peaks(place, points)
    handles, labels = axes[0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    for figure_name in dict.fromkeys(name for points in panels for name in points.measured):
        mark = Line2D([], [], linestyle="none", marker=_MEASURED_MARKS[figure_name], color=style.SOFT_INK)
        shown[f"measured: {METRICS[figure_name].label}"] = mark
    columns = (2 if panels[0].measured else 3) if width == "column" else 7
    figure.legend(
        list(shown.values()), list(shown), loc="outside lower center", ncols=min(columns, len(shown)),
        columnspacing=1.2, handletextpad=0.6,
    )  # fmt: skip
    return figure


def _peaks(axes: Axes, points: PeakPanel) -> None:
    peaks = [peak for line in points.estimated.values() for _, peak in line]
    scale = numbers.scale_for("bytes", peaks)
    for number, (method, line) in enumerate(points.estimated.items()):
        thickness, size = style.weight(number)
        axes.plot(
            [x for x, _ in line], [peak / scale.factor for _, peak in line], linestyle=(0, (4, 2)), linewidth=0.65 * thickness,
            color=style.colour(method), marker=style.marker(method), markerfacecolor=style.SURFACE, markersize=size,
            label=f"{method} {_slope(line)}" if points.slopes else method,
        )  # fmt: skip
    for figure, lines in points.measured.items():
        for method, line in lines.items():
            axes.plot(
                [x for x, _ in line], [peak / scale.factor for _, peak in line], linestyle="none", zorder=5,
                color=style.colour(method), marker=_MEASURED_MARKS[figure], markersize=3.2,
            )  # fmt: skip
    for room in points.rooms:
        axes.axhline(room / scale.factor, color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)))
        axes.annotate(
            f"room: {scale.text(room)}", (0.02, room / scale.factor), xycoords=("axes fraction", "data"),
            xytext=(0, 2), textcoords="offset points", fontsize=6.5, color=style.SOFT_INK,
        )  # fmt: skip
    axes.set_title(f"Peak of live tensors, estimated ({points.fixed})")
    axes.set_ylabel(f"live tensors [{scale.unit}]")
    style.from_zero(axes, "y")
    style.plain_ticks(axes, "y")
    value_axis(
        axes, sorted({x for line in points.estimated.values() for x, _ in line}), _AXES[points.against]
    )


def _slope(line: Sequence[tuple[float, float]]) -> str:
    """ "+4.3 GiB per step": of the least-squares line from T = 2 on."""
    points = [(x, y) for x, y in line if x >= 2] or list(line)
    if len(points) < 2:
        return ""
    slope = float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])
    negligible = abs(slope) < 1e-3 * max(y for _, y in points)
    return "flat" if negligible else f"{format_bytes(slope)} a step"


def draw_causes(bars: Sequence[Bar], width: Width) -> Figure:
    """One stacked bar for each method."""
    height = 0.75 + 0.26 * len(bars)
    figure, (axes,) = style.panels(width, 1, height + (0.25 if width == "column" else 0.1))
    scale = numbers.scale_for("bytes", [sum(bar.causes.values()) for bar in bars])
    ramp = matplotlib.colormaps["cividis"]
    left = [0.0] * len(bars)
    for number, cause in enumerate(CAUSES):
        sizes = [bar.causes[cause] / scale.factor for bar in bars]
        colour = to_hex(ramp(0.25 + 0.65 * number / (len(CAUSES) - 1)))
        axes.barh(range(len(bars)), sizes, left=left, height=0.62, color=colour, label=cause)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for place, total in enumerate(left):
        axes.annotate(
            numbers.significant(total), (total, place), xytext=(3, 0), textcoords="offset points", va="center",
            fontsize=6.5,
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [bar.method for bar in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title("Peak of live tensors by cause, estimated")
    axes.set_xlabel(f"live tensors [{scale.unit}]")
    axes.set_xlim(0, 1.12 * max(left))
    style.plain_ticks(axes, "x")
    style.legend_below(figure, axes, width)
    return figure
