"""Plots of a family of estimates, and what would make the others."""

from dataclasses import replace
from functools import partial

from sltt_bench.report.document import Figure, MissingFigure
from sltt_bench.report.plots.estimates import CAUSES, Bar, PeakPanel, draw_causes, draw_peaks
from sltt_bench.report.sections.estimates.families import MEASURED, EstimateFamily

_SWEEPS = (
    ("timesteps", "T", "--timesteps 1,2,4,6,8"),
    ("batch_size", "batch size", "--batch-size 64,128,256"),
)
"""What peaks are drawn against: the field, its word, and the option of `estimate` that varies it."""


def figures(family: EstimateFamily, name: str) -> list[Figure]:
    """Peaks against T and batch size with what was measured, and the causes of the peak."""
    steps, batch = family.home
    causes = (
        f"What the estimated peak of live tensors consists of at T = {steps}, batch {batch}. "
        f"{_conditions(family)}"
    )
    drawn = [
        Figure(f"{name}-causes", "What takes the memory", causes, partial(draw_causes, _bars(family))),
    ]
    if panels := _panels(family):
        peaks = partial(draw_peaks, panels)
        drawn.insert(0, Figure(f"{name}-memory", "Estimated peak memory", _peaks_caption(family), peaks))
    return drawn


def slope_figure(family: EstimateFamily) -> Figure | None:
    """Peaks against T alone, with their slope per time step; None for a family of one T."""
    points = _against(family, 0)
    if points is None:
        return None
    caption = (
        f"{_peaks_caption(family)} The slope is that of the least-squares line through the points of T ≥ 2, where SLTT "
        "has reached its plateau."
    )
    return Figure(
        f"memory-against-t-{family.recipe.replace('/', '-')}", f"Memory against T: {family.recipe}", caption,
        partial(draw_peaks, [replace(points, slopes=True)]),
    )  # fmt: skip


def missing(family: EstimateFamily) -> list[MissingFigure]:
    """The curves that these estimates cannot support, with the command that would make them."""
    there = {points.against for points in _panels(family)}
    return [
        MissingFigure(
            f"Estimated memory against {word}",
            f"estimated at one {word} alone",
            f"sltt-bench estimate {family.recipe} {option}",
        )
        for field, word, option in _SWEEPS
        if field not in there
    ]


def _bars(family: EstimateFamily) -> list[Bar]:
    bars = []
    for method in family.methods:
        row = family.at(family.home, method)
        if row is not None:
            causes = {label: sum(float(row[c]) for c in columns) for label, columns in CAUSES.items()}
            bars.append(Bar(method, causes))
    return bars


def _panels(family: EstimateFamily) -> list[PeakPanel]:
    return [points for axis in (0, 1) if (points := _against(family, axis)) is not None]


def _against(family: EstimateFamily, axis: int) -> PeakPanel | None:
    """The peaks along T (axis 0) or batch size (axis 1), the other one held at the recipe's own."""
    fixed = family.home[1 - axis]
    along = sorted({point[axis] for point in family.points if point[1 - axis] == fixed})
    if len(along) < 2:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for method in family.methods:
        for value in along:
            point = (value, fixed) if axis == 0 else (fixed, value)
            if (peak := family.value(point, method, "peak_tensor_bytes")) is not None:
                lines.setdefault(method, []).append((value, peak))
    field, other = (_SWEEPS[axis][0], _SWEEPS[1 - axis][0])
    seen = family.measured[(family.measured[other] == fixed) & family.measured["method"].isin(list(lines))]
    return PeakPanel(
        against=field,
        fixed=f"batch {fixed}" if axis == 0 else f"T = {fixed}",
        estimated={method: tuple(points) for method, points in lines.items()},
        measured={
            figure: {
                str(method): tuple(zip(rows[field].astype(float), rows["bytes"].astype(float), strict=True))
                for method, rows in seen[seen["figure"] == figure].groupby("method")
            }
            for figure in MEASURED
            if (seen["figure"] == figure).any()
        },
        rooms=tuple(sorted(family.rows["memory_bytes"].dropna().astype(float).unique())),
    )


def _peaks_caption(family: EstimateFamily) -> str:
    parts = ["Dashed, hollow marks: estimated peak of live tensors."]
    if len(family.measured):
        hardware = ", ".join(sorted(family.measured["hardware"].unique()))
        parts.append(
            f"Filled marks: measured on {hardware}, mean of {int(family.measured['seeds'].min())} or more seeds."
        )
    else:
        parts.append("Nothing of it was measured.")
    return f"{' '.join(parts)} {_conditions(family)}"


def _conditions(family: EstimateFamily) -> str:
    words = ", ".join(family.conditions)
    return f"{words[0].upper()}{words[1:]}, not measured."
