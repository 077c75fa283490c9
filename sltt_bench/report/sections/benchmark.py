"""The report's part on what is measured beside its baselines: rows of bench.csv.

Each row is a measurement of its own in one process, with a ratio to the best baseline of the same run.
Nothing is averaged: a later measurement of the same row replaces an earlier one.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd

from sltt_bench.common.format import Unit, counted, scale_for
from sltt_bench.report import numbers
from sltt_bench.report.document import (
    Column,
    Context,
    Contribution,
    Figure,
    Heading,
    Section,
    TableCell,
    table_of,
)
from sltt_bench.report.keys import UNKNOWN_HARDWARE
from sltt_bench.report.plots.dots import Dot, DotPanel, draw_dots
from sltt_bench.report.sections.cells import EMPTY
from sltt_bench.results.schema import BENCH_FILE
from sltt_bench.results.tables import Skipped

SAME = ["row", "quantity", "problem", "subject", "baseline", "device_name"]
"""What makes two measurements the same: the later one replaces the earlier."""

_ASKED = ["row", "quantity", "problem", "baseline", "device_name", "target"]
"""What a target is about. Of several subjects the best decides, as of several baselines the best was taken."""

_QUANTITIES: Mapping[str, tuple[str, Unit]] = {
    "peak_tensor_bytes": ("peak of live tensors", "bytes"),
    "wall_s": ("time", "s"),
    "process_s": ("CPU time", "s"),
}
"""Quantity of bench.csv → its words and unit; another one is shown under its own name."""

_LEAD = (
    "Each row sets one training iteration of the subject beside the best of the baselines measured in the same "
    "process: same machine, weights, data and precision.",
)
_RATIOS = (
    "Ratio: subject ÷ baseline. Of times, medians of alternated iterations and the median of the rounds' ratios; "
    "[ ]: half of the rounds lie within. Bytes are exact."
)


def beside_baselines(context: Context) -> Contribution:
    """A table and a plot for each device of all benchmark rows."""
    measured, cells = context.results.rows(BENCH_FILE), context.results.cells
    rows = newest(measured)
    sections = [
        _device_section(number, device, of_device, len(measured[measured["device_name"] == device]))
        for number, (device, of_device) in enumerate(rows.groupby("device_name", sort=True), start=1)
    ]
    failed = [
        f"{row} was not measured by run {run.path.name}: {reason}."
        for run in context.results.runs
        if run.provenance.get("kind") == "bench"
        for row, reason in (run.provenance.get("failed") or {}).items()
    ]
    top = Section("baselines", "Beside the baselines", lead=(*_LEAD, *failed))
    return Contribution(
        sections=(top, *sections) if sections or failed else (),
        frames={BENCH_FILE: rows.drop(columns=["run", "decides"])} if len(rows) else {},
        sentence=_sentence(rows) if len(rows) else "",
        skipped=tuple(
            Skipped(
                str(context.results.runs[int(str(number))].path),
                f"{counted(len(of_run), 'cell')} of kind bench: what is shown of a benchmark is its {BENCH_FILE}",
            )
            for number, of_run in cells[cells["kind"] == "bench"].groupby("run")
        ),
    )


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the measurements of the same thing the latest, in the order of first appearance in the table."""
    in_time = rows.sort_values("finished_utc", kind="stable")
    kept = in_time.drop_duplicates(SAME, keep="last").sort_index()
    best = kept.groupby(_ASKED, dropna=False)["ratio"].transform("min")
    return kept.assign(decides=kept["target"].notna() & (kept["ratio"] == best))


def _sentence(rows: pd.DataFrame) -> str:
    met = rows["decides"] & (rows["ratio"] <= rows["target"])
    counts = rows.assign(met=met).groupby("device_name", sort=True)[["met", "decides"]].sum()
    texts = [
        f"{met} of {decides} targets met on {device or UNKNOWN_HARDWARE}"
        for device, met, decides in counts.itertuples()
    ]
    count = rows["row"].nunique()
    return f"Beside its baselines ({counted(count, 'row')} of the benchmark): {', '.join(texts)}."


# Sections ---------------------------------------------------------------------------------------

Measurement = Mapping[Any, Any]
"""Column of bench.csv → value."""


def _device_section(number: int, device: Any, rows: pd.DataFrame, measured: int) -> Section:
    """`rows` are the newest of as many as were `measured` on the device."""
    name, device_name = f"baselines-{number}", str(device) or UNKNOWN_HARDWARE
    measurements = rows.to_dict("records")
    dots = [_dot(row) for row in measurements]
    # As much of a dot's details in its label as tells it from the others.
    named = tuple(dot.named([other for other in dots if other is not dot]) for dot in dots)
    rounds = sorted({int(count) for count in rows["rounds"].dropna()})
    times = f", times of {' or '.join(map(str, rounds))} rounds" if rounds else ""
    caption = (
        "Ratio of the subject to its baseline, one point a row; bars: half of the rounds; thick tick: the largest "
        "ratio that is wanted; hollow and red: not met. n = 1 measurement a row"
        f"{times}; {device_name}."
    )
    panel = DotPanel("Ratio to the baseline", "subject ÷ baseline [×]", named, no_change=1.0)
    figure = Figure(f"{name}-ratios", "Ratios to the baselines", caption, draw_dots, lambda: [panel])
    title = "Subjects beside their baselines"
    table = table_of(name, title, _COLUMNS, measurements, _notes(rows, measured - len(rows)))
    return Section(f"{name}-device", device_name, (table, figure), level=2)


def _notes(rows: pd.DataFrame, replaced: int) -> Iterator[str]:
    yield _RATIOS
    if replaced:
        yield (
            f"{replaced} earlier measurements of the same row, problem, subject, baseline and device are "
            "replaced by the latest; nothing is averaged."
        )
    if (rows["target"].notna() & ~rows["decides"]).any():
        yield "Of several subjects with one baseline the best decides; the others are marked as another way."
    for remark, alike in rows[rows["remark"] != ""].groupby("remark", sort=False):
        yield f"{', '.join(dict.fromkeys(alike['row']))}: {remark}."


def _quantity(row: Measurement) -> tuple[str, Unit]:
    return _QUANTITIES.get(row["quantity"], (row["quantity"], "count"))


def _half_of_rounds(row: Measurement) -> tuple[float, float] | None:
    """The ratios between which half of the rounds lie, if they are known."""
    low, high = row["ratio_low"], row["ratio_high"]
    return None if pd.isna(low) or pd.isna(high) else (low, high)


def _row_cell(row: Measurement) -> TableCell:
    return TableCell(row["row"], f"{_quantity(row)[0]}: {row['problem']}", row["row"])


def _side_cell(row: Measurement, side: str) -> TableCell:
    value = float(row[f"{side}_value"])
    return TableCell(row[side], scale_for(_quantity(row)[1], [value]).text(value), row[side])


def _ratio_cell(row: Measurement) -> TableCell:
    edges = _half_of_rounds(row)
    spread = f"[{', '.join(numbers.ratio.digits(edge, 0) for edge in edges)}]" if edges else ""
    return TableCell(numbers.ratio(row["ratio"]), spread, row["ratio"])


def _wanted_cell(row: Measurement) -> TableCell:
    target = row["target"]
    return EMPTY if pd.isna(target) else TableCell(f"≤ {target:g}", value=target)


def _verdict_cell(row: Measurement) -> TableCell:
    if not row["decides"]:
        return TableCell("only reported" if pd.isna(row["target"]) else "another way", tone="muted")
    met = row["ratio"] <= row["target"]
    return TableCell("met", value=0.0, tone="good") if met else TableCell("not met", value=1.0, tone="bad")


_COLUMNS: tuple[Column[Measurement], ...] = (
    (Heading("row", numeric=False), _row_cell),
    (Heading("subject", numeric=False), partial(_side_cell, side="subject")),
    (Heading("baseline", numeric=False), partial(_side_cell, side="baseline")),
    (Heading("÷ baseline"), _ratio_cell),
    (Heading("wanted"), _wanted_cell),
    (Heading("target", numeric=False), _verdict_cell),
)


def _dot(row: Measurement) -> Dot:
    target = row["target"] if row["decides"] else None
    details = (_quantity(row)[0], f"against {row['baseline']}", row["problem"], row["subject"])
    ratio = row["ratio"]
    return Dot(row["row"], ratio, numbers.ratio(ratio), _half_of_rounds(row), target, details=details)
