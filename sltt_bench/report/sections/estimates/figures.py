"""Plots of a family of estimates, and what would make the others."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from sltt_bench.common.format import Scale, scale_for, significant
from sltt_bench.report import numbers
from sltt_bench.report.document import Figure, MissingFigure
from sltt_bench.report.fields import axis_words
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots.bars import Bar, BarPanel, draw_bars
from sltt_bench.report.plots.lines import Axis, Line, Panel, draw_lines, fitted_line
from sltt_bench.report.sections.estimates.families import CAUSES, MEASURED, EstimateFamily
from sltt_bench.report.statistics import slope_of

_OTHER = {"timesteps": "batch_size", "batch_size": "timesteps"}
"""What peaks are drawn against → what is held at the recipe's own."""
_WORDS = {"timesteps": "T", "batch_size": "batch size"}
_AXES = {"timesteps": axis_words("timesteps"), "batch_size": axis_words("train.batch_size")}
_OPTIONS = {"timesteps": "--timesteps 1,2,4,6,8", "batch_size": "--batch-size 64,128,256"}
"""Those of `estimate` that vary them."""
_MEASURED_MARKS = {"peak_tensor_bytes": "o", "peak_allocated_bytes": "D"}


def figures(family: EstimateFamily, name: str) -> list[Figure]:
    """Peaks against T and batch size with what was measured, and the causes of the peak."""
    steps, batch = family.home
    place = f"T = {steps}, batch {batch}"
    causes = f"What the peak of live tensors consists of at {place}: {_conditions(family)}."
    drawn = [Figure(f"{name}-causes", "What takes the memory", causes, draw_bars, lambda: [_causes(family)])]
    if panels := [panel for field in _OTHER if (panel := _against(family, field))]:
        title, caption = "Estimated peak memory", _peaks_caption(family)
        drawn.insert(0, Figure(f"{name}-memory", title, caption, draw_lines, lambda: panels))
    return drawn


def slope_figure(family: EstimateFamily) -> Figure | None:
    """Peaks against T alone, with their slope per time step; None for a family of one T."""
    panel = _against(family, "timesteps")
    if panel is None:
        return None
    caption = (
        f"{_peaks_caption(family)} Dotted: least-squares line through the points with T ≥ 2, where SLTT has "
        "reached its plateau; the legend gives its slope."
    )
    name = f"memory-against-t-{family.recipe.replace('/', '-')}"
    title = f"Memory against T: {family.recipe}"
    return Figure(name, title, caption, draw_lines, lambda: [_with_slopes(family, panel)])


def _with_slopes(family: EstimateFamily, panel: Panel) -> Panel:
    """The panel against T with each method's slope in its label, and the line that it is the slope of."""
    factor = _scale(_peaks(family, "timesteps")).factor
    lines = []
    for line in panel.lines:
        lines.append(line)
        slope = slope_of(list(zip(line.xs, line.ys, strict=True))) if line.stroke == "dashed" else None
        if slope is not None:
            per_step = slope.per_step * factor
            words = "flat" if slope.flat else f"{scale_for('bytes', [per_step]).text(per_step)} a step"
            lines[-1] = replace(line, label=f"{line.label} {words}")
            lines.append(fitted_line(line.method, slope))
    return replace(panel, lines=tuple(lines))


def missing(family: EstimateFamily) -> list[MissingFigure]:
    """The curves that these estimates cannot support, with the command that would make them."""
    return [
        MissingFigure(
            f"Estimated memory against {_WORDS[field]}",
            f"estimated for one {_WORDS[field]} only",
            f"sltt-bench estimate {family.recipe} {_OPTIONS[field]}",
        )
        for field in _OTHER
        if _against(family, field) is None
    ]


def _causes(family: EstimateFamily) -> BarPanel:
    """One stacked bar for each method."""
    parts = {
        method: [sum(float(row[column]) for column in columns) for columns in CAUSES.values()]
        for method in family.methods
        if (row := family.estimates.get((family.home, method)))
    }
    scale = scale_for("bytes", [sum(sizes) for sizes in parts.values()])
    bars = [
        Bar(method, tuple(size / scale.factor for size in sizes), significant(sum(sizes) / scale.factor))
        for method, sizes in parts.items()
    ]
    title = "Peak of live tensors by cause, estimated"
    return BarPanel(title, f"live tensors [{scale.unit}]", tuple(bars), tuple(CAUSES))


def _peaks(family: EstimateFamily, field: str) -> pd.DataFrame:
    """[T or batch sizes, methods]: peaks in bytes, the other field held at the recipe's own; NaN where none is known."""
    rows: pd.DataFrame = family.rows[family.rows[_OTHER[field]] == getattr(family.home, _OTHER[field])]
    peaks = rows.pivot(index=field, columns="method", values="peak_tensor_bytes")
    return peaks.reindex(columns=family.methods)


def _scale(peaks: pd.DataFrame) -> Scale:
    return scale_for("bytes", peaks.to_numpy(dtype=float).flat)


def _against(family: EstimateFamily, field: str) -> Panel | None:
    """The peaks along T or batch size, the other one held at the recipe's own.

    Dashed lines with hollow marks are estimates; filled marks were measured.
    """
    peaks = _peaks(family, field)
    if len(peaks) < 2:
        return None
    values, scale = peaks.index.tolist(), _scale(peaks)
    held = f"batch {family.home.batch_size}" if field == "timesteps" else f"T = {family.home.timesteps}"
    lines = {name: (peaks[name] / scale.factor).tolist() for name in family.methods}
    estimated = [
        Line(name, values, ys, method=name, stroke="dashed", marks="hollow") for name, ys in lines.items()
    ]
    return Panel(
        f"Peak of live tensors, estimated ({held})",
        Axis(_AXES[field], at=tuple(values)),
        Axis(f"live tensors [{scale.unit}]", from_zero=True),
        (*estimated, *_measured(family, field, scale.factor)),
        levels=tuple((room / scale.factor, f"room: {scale.text(room)}") for room in family.rooms),
    )


def _measured(family: EstimateFamily, field: str, factor: float) -> Iterator[Line]:
    """What was measured along T or batch size: marks of each figure's own shape, with an entry in the legend."""
    other = _OTHER[field]
    rows = family.measured[family.measured[other] == getattr(family.home, other)]
    rows = rows[rows["method"].isin(family.methods)]
    for figure in MEASURED:
        of_figure, marker = rows[rows["figure"] == figure], _MEASURED_MARKS[figure]
        for method, own in of_figure.groupby("method"):
            xs, ys = own[field].tolist(), (own["bytes"].astype(float) / factor).tolist()
            yield Line("", xs, ys, method=str(method), stroke="none", marker=marker, size=(0.0, 3.2))
        if len(of_figure):
            yield Line(f"measured: {METRICS[figure].label}", stroke="none", marker=marker, soft=True)


def _peaks_caption(family: EstimateFamily) -> str:
    parts = [f"Dashed, with hollow marks: peak of live tensors, {_conditions(family)}."]
    if len(family.measured):
        hardware = ", ".join(sorted(family.measured["hardware"].unique()))
        n = numbers.seeds(family.measured["seeds"].tolist())
        parts.append(f"Filled marks: measured on {hardware}; mean over seeds, {n}.")
    else:
        parts.append("None of it was measured.")
    return " ".join(parts)


def _conditions(family: EstimateFamily) -> str:
    """How the estimates were made, as a caption has it."""
    return ", ".join([*family.conditions, "not measured"])
