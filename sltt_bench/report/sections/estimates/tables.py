"""Tables of a family of estimates."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from sltt_bench.common.format import Scale, Unit, scale_for
from sltt_bench.report import numbers
from sltt_bench.report.document import Column, Heading, Table, TableCell, table_of
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.sections.cells import EMPTY, plain_cell, word_column
from sltt_bench.report.sections.estimates.families import CAUSES, MEASURED, WORK, EstimateFamily, Point

Estimate = Mapping[Any, Any]
"""Column of estimates.csv → value."""


def memory_table(family: EstimateFamily, name: str, baseline: str) -> Table:
    """The peak at each T and batch size, with what else a reader of it must know."""
    notes = ["For one training iteration in the steady state.", *_ratio_note(family, baseline)]
    notes += [f"{failure}." for failure in family.failures]
    notes += [f"Older estimates of the same cells, left out: {family.again}."] * (family.again > 0)
    title = "Peak of live tensors, estimated"
    return _pivot(family, f"{name}-memory", title, "peak_tensor_bytes", _bytes, notes, baseline)


def further_tables(family: EstimateFamily, name: str, baseline: str) -> Iterator[Table]:
    """The multiplications, what was asked for beside, what was measured, and what peak and multiplications consist of."""
    notes = [
        "Forward and backward pass together. SLTT-K has a backward pass at K of the T steps.",
        *_ratio_note(family, baseline),
    ]
    title = "Multiplications of one training iteration, estimated"
    yield _pivot(family, f"{name}-work", title, "multiplications", _powers, notes, baseline)
    yield from _limit_tables(family, name)
    if rows := _rows_beside(family):
        title = "Estimated beside measured"
        yield table_of(f"{name}-measured", title, _BESIDE_COLUMNS, rows, _BESIDE_NOTES)
    title, causes = "What the peak consists of", CAUSES | {"peak": ("peak_tensor_bytes",)}
    note = "The causes add up to the peak."
    yield _parts_table(family, f"{name}-composition", title, "bytes", causes, note)
    title, parts = "Where the multiplications are made", {label: [column] for column, label in WORK.items()}
    parts |= {"all": list(WORK), "an epoch": ["epoch_multiplications"]}
    note = (
        "In time: what the past adds to the cost of T first steps, which have no past. Recomputation in the backward pass "
        "(bptt-ckptN, native.recompute) counts as backward, most of it in space."
    )
    yield _parts_table(family, f"{name}-parts", title, "count", parts, note)


def _ratio_note(family: EstimateFamily, baseline: str) -> list[str]:
    return [f"×: ratio to {baseline}."] * (baseline in family.methods)


def _limit_tables(family: EstimateFamily, name: str) -> Iterator[Table]:
    """What was asked for beside: the largest batch and T that fit, and the lower bound on time; and what processes
    exchange."""
    rows, room = family.rows, " or ".join(scale_for("bytes", [room]).text(room) for room in family.rooms)
    that_fits = partial(_pivot, family, scale_of=_whole, of="memory_bytes")
    if rows["largest_batch_size"].notna().any():
        title = "Largest batch that fits, estimated"
        note = f"At the row's T, in {room}, the memory given less a safety margin. No batch is larger than the training set."
        yield that_fits(f"{name}-largest-batch", title, "largest_batch_size", notes=[note])
    if rows["largest_timesteps"].notna().any() or family.rooms:
        title = "Largest T that fits, estimated"
        note = f"At the row's batch, in {room}, the memory given less a safety margin. Searched up to T = 64, or to the row's T if larger."
        yield that_fits(f"{name}-largest-t", title, "largest_timesteps", notes=[note])
    if rows["epoch_lower_bound_s"].notna().any():
        gpus = ", ".join(sorted(set(rows["gpu"]) - {""}))
        title = "Lower bound on an epoch's training time"
        note = f"From the data sheet of {gpus}. No run that does these operations one by one can be faster; a real run is slower."
        seconds = partial(scale_for, "s")
        yield _pivot(family, f"{name}-time", title, "epoch_lower_bound_s", seconds, [note], of="gpu")
    if (rows["exchanged_bytes"].fillna(0) > 0).any():
        title = "Exchanged in each iteration, by each process"
        note = "What a ring sums over all processes, mostly gradients: the bytes that each process sends, and as many that it receives."
        yield _pivot(family, f"{name}-exchanged", title, "exchanged_bytes", _bytes, [note])


def _pivot(
    family: EstimateFamily,
    name: str,
    title: str,
    column: str,
    scale_of: Callable[[Iterable[float]], Scale],
    notes: Sequence[str],
    baseline: str | None = None,
    *,
    of: str = "",
) -> Table:
    """A row for each T and batch size, a column for each method, of one column of estimates.csv, with the ratios to a
    baseline. `of`: the column that says what for it was asked; where that is not the same of all, each value says it."""
    scale = scale_of(family.rows[column].dropna().astype(float))
    given = {key: row[of] for key, row in family.estimates.items()} if of else {}
    asked = {key: what for key, what in given.items() if what and pd.notna(what)}
    several = len(set(asked.values())) > 1

    def of_which(point: Point, method: str) -> str:
        known = asked.get((point, method))
        if not several or known is None:
            return ""
        return str(known) if isinstance(known, str) else scale_for("bytes", [known]).text(known)

    def cell(point: Point, method: str) -> TableCell:
        value = family.value(point, method, column)
        if value is None:
            searched = family.value(point, method, "memory_bytes") is not None
            met = column == "largest_timesteps" and searched
            return TableCell("no limit met", of_which(point, method)) if met else EMPTY
        ratio = None
        if baseline is not None and method != baseline:
            ratio = family.ratio(point, method, baseline, column)
        detail = of_which(point, method) if ratio is None else numbers.ratio(ratio)
        return TableCell(scale.number(value), detail, value)

    columns: list[Column[Point]] = [
        (Heading("T"), lambda point: plain_cell(point.timesteps)),
        (Heading("batch"), lambda point: plain_cell(point.batch_size)),
        *((Heading(method, scale.unit), partial(cell, method=method)) for method in family.methods),
    ]
    return table_of(name, title, columns, family.points, notes)


_bytes = partial(scale_for, "bytes")


def _powers(values: Iterable[float]) -> Scale:
    """A count's scale as a power of ten: "T" would be read as time steps."""
    factor = scale_for("count", values).factor
    exponent = str(round(math.log10(factor))).translate(_SUPERSCRIPTS)
    return Scale(factor, "" if factor == 1 else f"10{exponent}")


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class _Whole(Scale):
    """Whole numbers, shown in full."""

    def number(self, value: float) -> str:
        return f"{value:,.0f}"


def _whole(values: Iterable[float]) -> Scale:
    return _Whole(1, "")


_PLACE: tuple[Column[Estimate], ...] = (
    (Heading("T"), lambda row: plain_cell(row["timesteps"])),
    (Heading("batch"), lambda row: plain_cell(row["batch_size"])),
    word_column("method", lambda row: row["method"]),
)
"""What tables begin with that have a row for each estimate."""


def _rows_beside(family: EstimateFamily) -> list[Estimate]:
    """The estimates of what was measured, each with the `hardware` and what was `measured` there."""
    rows: list[Estimate] = []
    for keys, same in family.measured.groupby(["timesteps", "batch_size", "method", "hardware"], sort=True):
        *point, method, hardware = keys
        place: Any = (tuple(point), method)
        if place in family.estimates:
            measured = dict(zip(same["figure"], same["bytes"], strict=True))
            rows.append({**family.estimates[place], "hardware": hardware, "measured": measured})
    return rows


def _measured_cell(row: Estimate, figure: str) -> TableCell:
    if figure not in row["measured"]:
        return EMPTY
    value, estimate = row["measured"][figure], row["peak_tensor_bytes"]
    return TableCell(_bytes([value]).text(value), f"{value / estimate:.3f} of the estimate", value)


def _parts_table(
    family: EstimateFamily, name: str, title: str, unit: Unit, parts: Mapping[str, Sequence[str]], note: str
) -> Table:
    """A row for each point and method, a column for each part: a sum of columns of estimates.csv."""
    places = [(point, method) for point in family.points for method in family.methods]
    rows = [family.estimates[place] for place in places if place in family.estimates]
    columns: list[Column[Estimate]] = [
        *_PLACE,
        *((Heading(label), partial(_sum_cell, columns=of, unit=unit)) for label, of in parts.items()),
    ]
    return table_of(name, title, columns, rows, [note], secondary=True)


def _sum_cell(row: Estimate, columns: Sequence[str], unit: Unit) -> TableCell:
    total = sum(float(row[column]) for column in columns)
    return EMPTY if math.isnan(total) else TableCell(scale_for(unit, [total]).text(total), value=total)


_BESIDE_COLUMNS: tuple[Column[Estimate], ...] = (
    *_PLACE,
    (Heading("estimated live tensors"), partial(_sum_cell, columns=["peak_tensor_bytes"], unit="bytes")),
    *(
        (Heading(f"measured: {METRICS[name].label}"), partial(_measured_cell, figure=name))
        for name in MEASURED
    ),
    word_column("on", lambda row: row["hardware"]),
)
_BESIDE_NOTES = (
    "Measured live tensors are the same quantity, counted on real tensors. The allocator's figure differs: it rounds each "
    "block up, fragments, and lends cuDNN its workspaces.",
)
