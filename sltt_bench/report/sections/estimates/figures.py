"""Plots of a family of estimates, and what would make the others."""

from functools import partial

from sltt_bench.report.document import Figure, Missing
from sltt_bench.report.plots.estimates import CAUSES, Bar, Points, draw_causes, draw_peaks
from sltt_bench.report.sections.estimates.families import MEASURED, Family

_SWEEPS = (
    ("timesteps", "T", "--timesteps 1,2,4,6,8"),
    ("batch_size", "batch size", "--batch-size 64,128,256"),
)
"""What peaks are drawn against: the field, its word, and the option of `estimate` that varies it."""


def figures(family: Family, name: str) -> list[Figure]:
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


def missing(family: Family) -> list[Missing]:
    """The curves that these estimates cannot support, with the command that would make them."""
    there = {points.against for points in _panels(family)}
    return [
        Missing(
            f"Estimated memory against {word}",
            f"estimated at one {word} alone",
            f"sltt-bench estimate {family.recipe} {option}",
        )
        for field, word, option in _SWEEPS
        if field not in there
    ]


def _bars(family: Family) -> list[Bar]:
    bars = []
    for method in family.methods:
        row = family.at(family.home, method)
        if row is not None:
            causes = {label: sum(float(row[c]) for c in columns) for label, columns in CAUSES.items()}
            bars.append(Bar(method, causes))
    return bars


def _panels(family: Family) -> list[Points]:
    return [points for axis in (0, 1) if (points := _against(family, axis)) is not None]


def _against(family: Family, axis: int) -> Points | None:
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
    return Points(
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


def _peaks_caption(family: Family) -> str:
    parts = ["Dashed, hollow marks: estimated peak of live tensors."]
    if len(family.measured):
        hardware = ", ".join(sorted(family.measured["hardware"].unique()))
        parts.append(
            f"Filled marks: measured on {hardware}, mean of {int(family.measured['seeds'].min())} or more seeds."
        )
    else:
        parts.append("Nothing of it was measured.")
    return f"{' '.join(parts)} {_conditions(family)}"


def _conditions(family: Family) -> str:
    words = ", ".join(family.conditions)
    return f"{words[0].upper()}{words[1:]}, not measured."
