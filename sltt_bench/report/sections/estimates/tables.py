"""Tables of a family of estimates."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sltt_bench.format import DASH, Scale, Unit, scale_for
from sltt_bench.report import numbers
from sltt_bench.report.document import Heading, Table, TableCell
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.sections.estimates.families import CAUSES, MEASURED, WORK, EstimateFamily, Point

_EMPTY = TableCell(DASH, tone="muted")


@dataclass(frozen=True)
class _Pivot:
    """What a table of one column of estimates.csv looks like."""

    name: str
    title: str
    scale: Callable[[Sequence[float]], Scale]
    compared: bool
    """Whether ratios to the baseline stand beside the values."""
    note: Callable[[EstimateFamily], str]


def memory_table(family: EstimateFamily, name: str, baseline: str) -> Table:
    """The peak at each T and batch size, with what else a reader of it must know."""
    notes = [f"{failure}." for failure in family.failures]
    notes += [f"{family.again} older estimates of the same cells do not count."] * (family.again > 0)
    return _pivot(family, name, baseline, "peak_tensor_bytes", notes)


def work_table(family: EstimateFamily, name: str, baseline: str) -> Table:
    """The multiplications at each T and batch size."""
    return _pivot(family, name, baseline, "multiplications")


def limit_tables(family: EstimateFamily, name: str, baseline: str) -> Iterator[Table]:
    """What was asked for beside: the largest batch and T that fit, and the lower bound on time."""
    searched = family.rows["memory_bytes"].notna().any()
    for column in ("largest_batch_size", "largest_timesteps", "epoch_lower_bound_s"):
        if family.rows[column].notna().any() or (column == "largest_timesteps" and searched):
            yield _pivot(family, name, baseline, column)
    if (family.rows["exchanged_bytes"].fillna(0) > 0).any():
        yield _pivot(family, name, baseline, "exchanged_bytes")


def _pivot(family: EstimateFamily, name: str, baseline: str, column: str, notes: Sequence[str] = ()) -> Table:
    """A row for each T and batch size, a column for each method."""
    look = _PIVOTS[column]
    scale = look.scale(list(family.rows[column].dropna().astype(float)))
    compared = look.compared and baseline in family.methods
    rows = []
    for point in family.points:
        against = {method: family.ratio(point, method, baseline, column) for method in family.methods}
        cells = [_value_cell(family, point, method, column, scale) for method in family.methods]
        if compared:
            cells = [
                cell
                if method == baseline or ratio is None
                else TableCell(cell.text, numbers.ratio(ratio), cell.value)
                for cell, (method, ratio) in zip(cells, against.items(), strict=True)
            ]
        rows.append((*_point_cells(point), *cells))
    headings = (*_POINT_HEADINGS, *(Heading(method, scale.unit) for method in family.methods))
    lines = [look.note(family), *([f"×: ratio to {baseline}."] if compared else []), *notes]
    return Table(f"{name}-{look.name}", look.title, headings, tuple(rows), tuple(lines))


_POINT_HEADINGS = (Heading("T"), Heading("batch"))


def _point_cells(point: Point) -> tuple[TableCell, TableCell]:
    steps, batch = point
    return TableCell(str(steps), value=steps), TableCell(str(batch), value=batch)


def _value_cell(family: EstimateFamily, point: Point, method: str, column: str, scale: Scale) -> TableCell:
    value = family.value(point, method, column)
    if value is not None:
        return TableCell(scale.number(value), value=value)
    searched = family.value(point, method, "memory_bytes") is not None
    return TableCell("no limit met") if column == "largest_timesteps" and searched else _EMPTY


def _powers(values: Sequence[float]) -> Scale:
    """A count's scale as a power of ten: "T" would be read as time steps."""
    factor = scale_for("count", values).factor
    exponent = str(round(math.log10(factor))).translate(_SUPERSCRIPTS)
    return Scale(factor, "" if factor == 1 else f"10{exponent}")


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class _Whole(Scale):
    """Whole numbers, shown in full."""

    def number(self, value: float) -> str:
        return f"{value:,.0f}"


_COUNT = _Whole(1, "")
_PIVOTS = {
    "peak_tensor_bytes": _Pivot(
        "memory", "Peak of live tensors, estimated", partial(scale_for, "bytes"), True,
        lambda family: "Of one training iteration, in the steady state.",
    ),
    "multiplications": _Pivot(
        "work", "Multiplications of one training iteration, estimated", _powers, True,
        lambda family: "Forward and backward; SLTT-K passes backward at K of T steps.",
    ),
    "largest_batch_size": _Pivot(
        "largest-batch", "Largest batch that fits, estimated", lambda _: _COUNT, False,
        lambda family: f"At the row's T, into {_room(family)}.",
    ),
    "largest_timesteps": _Pivot(
        "largest-t", "Largest T that fits, estimated", lambda _: _COUNT, False,
        lambda family: f"At the row's batch, into {_room(family)}; searched up to T = 64.",
    ),
    "exchanged_bytes": _Pivot(
        "exchanged", "Exchanged in each iteration, by each process", partial(scale_for, "bytes"), False,
        lambda family: "Gradients over all processes by a ring: what each sends, and receives.",
    ),
    "epoch_lower_bound_s": _Pivot(
        "time", "Lower bound on an epoch's training time", partial(scale_for, "s"), False,
        lambda family: f"{', '.join(sorted(set(family.rows['gpu']) - {''}))}, from its data sheet: no run can be "
        "faster, every run is slower.",
    ),
}  # fmt: skip


def _room(family: EstimateFamily) -> str:
    rooms = sorted(family.rows["memory_bytes"].dropna().astype(float).unique())
    return " or ".join(scale_for("bytes", [room]).text(room) for room in rooms) + ", margin taken off"


def beside_table(family: EstimateFamily, name: str) -> Table | None:
    """Estimated and measured figures of the same experiment, each under its own name; None without any."""
    rows = []
    for keys, same in family.measured.groupby(["timesteps", "batch_size", "method", "hardware"], sort=True):
        steps, batch, method, hardware = (str(key) for key in keys)
        estimate = family.value((int(steps), int(batch)), method, "peak_tensor_bytes")
        if estimate is None:
            continue
        figures = dict(zip(same["figure"], same["bytes"], strict=True))
        cells = [*_point_cells((int(steps), int(batch)))]
        cells += [TableCell(method, value=method), TableCell(_bytes(estimate), value=estimate)]
        for figure in MEASURED:
            value = figures.get(figure)
            beside = "" if value is None else f"{value / estimate:.3f} of the estimate"
            cells.append(_EMPTY if value is None else TableCell(_bytes(value), beside, value))
        rows.append((*cells, TableCell(hardware, value=hardware)))
    headings = (
        *_POINT_HEADINGS, Heading("method", numeric=False), Heading("estimated live tensors"),
        *(Heading(f"measured: {METRICS[figure].label}") for figure in MEASURED), Heading("on", numeric=False),
    )  # fmt: skip
    title = "Estimated beside measured"
    return Table(f"{name}-measured", title, headings, tuple(rows), _BESIDE_NOTES) if rows else None


_BESIDE_NOTES = (
    "Live tensors count the same quantity on real tensors. The allocator rounds each block up, fragments, and "
    "lends cuDNN its workspaces.",
)


def _bytes(value: float) -> str:
    return scale_for("bytes", [value]).text(value)


def cause_table(family: EstimateFamily, name: str) -> Table:
    """What the peak consists of."""
    parts = {**{label: list(columns) for label, columns in CAUSES.items()}, "peak": ["peak_tensor_bytes"]}
    notes = ("The causes add up to the peak.",)
    return _parts_table(family, f"{name}-composition", "What the peak consists of", "bytes", parts, notes)


def part_table(family: EstimateFamily, name: str) -> Table:
    """Where the multiplications are made."""
    parts = {label: [column] for column, label in WORK.items()}
    parts |= {"all": list(WORK), "an epoch": ["epoch_multiplications"]}
    notes = ("In time: what the past costs, beyond as many first steps.",)
    return _parts_table(family, f"{name}-parts", "Where the multiplications are made", "count", parts, notes)


def _parts_table(
    family: EstimateFamily,
    name: str,
    title: str,
    unit: Unit,
    parts: Mapping[str, list[str]],
    notes: tuple[str, ...],
) -> Table:
    """A row for each point and method, a column for each part: a sum of columns of estimates.csv."""
    rows = []
    for point in family.points:
        for method in family.methods:
            if family.at(point, method) is None:
                continue
            cells = [*_point_cells(point), TableCell(method, value=method)]
            for columns in parts.values():
                values = [family.value(point, method, column) for column in columns]
                cells.append(_sum_cell(values, unit))
            rows.append(tuple(cells))
    headings = (*_POINT_HEADINGS, Heading("method", numeric=False), *(Heading(label) for label in parts))
    return Table(name, title, headings, tuple(rows), notes, secondary=True)


def _sum_cell(values: Sequence[float | None], unit: Unit) -> TableCell:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return _EMPTY
    return TableCell(scale_for(unit, [sum(known)]).text(sum(known)), value=sum(known))
