"""Plots of a family of estimates, and what would make the others."""

from collections.abc import Iterator
from dataclasses import replace

from sltt_bench.format import Scale, scale_for, significant
from sltt_bench.report import numbers
from sltt_bench.report.document import Figure, MissingFigure
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots.bars import Bar, BarPanel, draw_bars
from sltt_bench.report.plots.lines import Axis, Line, Panel, draw_lines
from sltt_bench.report.sections.estimates.families import CAUSES, MEASURED, EstimateFamily, Point
from sltt_bench.report.statistics import slope_of

_SWEEPS = (
    ("timesteps", "T", "--timesteps 1,2,4,6,8"),
    ("batch_size", "batch size", "--batch-size 64,128,256"),
)
"""What peaks are drawn against: the field, its word, and the option of `estimate` that varies it."""
_AXES = ("T, time steps", "batch size")
_MEASURED_MARKS = {"peak_tensor_bytes": "o", "peak_allocated_bytes": "D"}


def figures(family: EstimateFamily, name: str) -> list[Figure]:
    """Peaks against T and batch size with what was measured, and the causes of the peak."""
    steps, batch = family.home
    causes = (
        f"What the estimated peak of live tensors consists of at T = {steps}, batch {batch}. "
        f"{_conditions(family)}"
    )
    drawn = [
        Figure(
            f"{name}-causes",
            "What takes the memory",
            causes,
            draw_bars,
            lambda: [_causes(family)],
        )
    ]
    if panels := _panels(family):
        peaks = Figure(
            f"{name}-memory",
            "Estimated peak memory",
            _peaks_caption(family),
            draw_lines,
            lambda: panels,
        )
        drawn.insert(0, peaks)
    return drawn


def slope_figure(family: EstimateFamily) -> Figure | None:
    """Peaks against T alone, with their slope per time step; None for a family of one T."""
    panel = _against(family, 0)
    if panel is None:
        return None
    caption = (
        f"{_peaks_caption(family)} Dotted: the least-squares line through the points of T ≥ 2, where SLTT has "
        "reached its plateau, with its slope in the legend."
    )
    return Figure(
        f"memory-against-t-{family.recipe.replace('/', '-')}", f"Memory against T: {family.recipe}", caption,
        draw_lines,
        lambda: [_with_slopes(family, panel)],
    )  # fmt: skip


def _with_slopes(family: EstimateFamily, panel: Panel) -> Panel:
    """The panel against T with each method's slope in its label, and the line that it is the slope of."""
    factor = _scale(family, 0).factor
    lines = []
    for line in panel.lines:
        slope = slope_of(list(zip(line.xs, line.ys, strict=True))) if line.stroke == "dashed" else None
        if slope is None:
            lines.append(line)
            continue
        per_step = slope.per_step * factor
        words = "flat" if slope.flat else f"{scale_for('bytes', [per_step]).text(per_step)} a step"
        ends = (slope.first, slope.last)
        lines.append(replace(line, label=f"{line.label} {words}"))
        fit = [slope.at(end) for end in ends]
        lines.append(Line("", ends, fit, method=line.method, stroke="dotted", marks="none", size=(0.9, 0.0)))
    return replace(panel, lines=tuple(lines))


def missing(family: EstimateFamily) -> list[MissingFigure]:
    """The curves that these estimates cannot support, with the command that would make them."""
    return [
        MissingFigure(
            f"Estimated memory against {word}",
            f"estimated at one {word} alone",
            f"sltt-bench estimate {family.recipe} {option}",
        )
        for axis, (_, word, option) in enumerate(_SWEEPS)
        if _against(family, axis) is None
    ]


def _causes(family: EstimateFamily) -> BarPanel:
    """One stacked bar for each method."""
    rows = {method: row for method in family.methods if (row := family.at(family.home, method)) is not None}
    parts = {
        method: [sum(float(row[column]) for column in columns) for columns in CAUSES.values()]
        for method, row in rows.items()
    }
    scale = scale_for("bytes", [sum(sizes) for sizes in parts.values()])
    bars = [
        Bar(method, tuple(size / scale.factor for size in sizes), significant(sum(sizes) / scale.factor))
        for method, sizes in parts.items()
    ]
    title = "Peak of live tensors by cause, estimated"
    return BarPanel(title, f"live tensors [{scale.unit}]", tuple(bars), tuple(CAUSES))


def _panels(family: EstimateFamily) -> list[Panel]:
    return [panel for axis in (0, 1) if (panel := _against(family, axis)) is not None]


def _values(family: EstimateFamily, axis: int) -> list[int]:
    """T (axis 0) or batch sizes (axis 1) of the points that have the other one at the recipe's own."""
    fixed = family.home[1 - axis]
    return sorted({point[axis] for point in family.points if point[1 - axis] == fixed})


def _peaks(family: EstimateFamily, axis: int) -> dict[str, list[float]]:
    """Method → its peak at each of `_values`, in bytes; NaN where there is no estimate."""
    fixed = family.home[1 - axis]

    def peak(method: str, value: int) -> float:
        point: Point = (value, fixed) if axis == 0 else (fixed, value)
        known = family.value(point, method, "peak_tensor_bytes")
        return float("nan") if known is None else known

    return {method: [peak(method, value) for value in _values(family, axis)] for method in family.methods}


def _scale(family: EstimateFamily, axis: int) -> Scale:
    return scale_for("bytes", [peak for line in _peaks(family, axis).values() for peak in line])


def _against(family: EstimateFamily, axis: int) -> Panel | None:
    """The peaks along T (axis 0) or batch size (axis 1), the other one held at the recipe's own.

    Dashed lines with hollow marks are estimates; filled marks were measured.
    """
    values, fixed, scale = _values(family, axis), family.home[1 - axis], _scale(family, axis)
    if len(values) < 2:
        return None
    estimated = [
        Line(
            method, values, [peak / scale.factor for peak in line], method=method, stroke="dashed", marks="hollow"
        )
        for method, line in _peaks(family, axis).items()
    ]  # fmt: skip
    rooms = sorted(family.rows["memory_bytes"].dropna().astype(float).unique())
    return Panel(
        f"Peak of live tensors, estimated ({'batch ' if axis == 0 else 'T = '}{fixed})",
        Axis(_AXES[axis], at=tuple(values)),
        Axis(f"live tensors [{scale.unit}]", from_zero=True),
        (*estimated, *_measured(family, axis, scale.factor)),
        levels=tuple((room / scale.factor, f"room: {scale.text(room)}") for room in rooms),
    )


def _measured(family: EstimateFamily, axis: int, factor: float) -> Iterator[Line]:
    """What was measured along the axis: marks of each figure's own shape, with an entry in the legend."""
    field, other = _SWEEPS[axis][0], _SWEEPS[1 - axis][0]
    rows = family.measured[family.measured[other] == family.home[1 - axis]]
    rows = rows[rows["method"].isin(family.methods)]
    for figure in MEASURED:
        of_figure, marker = rows[rows["figure"] == figure], _MEASURED_MARKS[figure]
        for method, own in of_figure.groupby("method"):
            ys = (own["bytes"].astype(float) / factor).tolist()
            yield Line(
                "", own[field].tolist(), ys, method=str(method), stroke="none", marker=marker, size=(0.0, 3.2)
            )
        if len(of_figure):
            yield Line(f"measured: {METRICS[figure].label}", stroke="none", marker=marker, soft=True)


def _peaks_caption(family: EstimateFamily) -> str:
    parts = ["Dashed, hollow marks: estimated peak of live tensors."]
    if len(family.measured):
        hardware = ", ".join(sorted(family.measured["hardware"].unique()))
        fewest, most = int(family.measured["seeds"].min()), int(family.measured["seeds"].max())
        n = numbers.seeds(most) if fewest == most else f"n = {fewest} to {most} seeds"
        parts.append(f"Filled marks: measured on {hardware}, mean over seeds, {n}.")
    else:
        parts.append("Nothing of it was measured.")
    return f"{' '.join(parts)} {_conditions(family)}"


def _conditions(family: EstimateFamily) -> str:
    words = ", ".join(family.conditions)
    return f"{words[0].upper()}{words[1:]}, not measured."
