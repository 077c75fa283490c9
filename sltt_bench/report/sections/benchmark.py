"""The report's part on what is measured beside its baselines: rows of bench.csv.

Each row is a measurement of its own in one process, with a ratio to the best baseline of the same run.
Nothing is averaged: a later measurement of the same row replaces an earlier one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from sltt_bench.format import DASH, Unit, scale_for
from sltt_bench.report import numbers
from sltt_bench.report.document import Context, Contribution, Figure, Heading, Section, Table, TableCell
from sltt_bench.report.groups import UNKNOWN_HARDWARE
from sltt_bench.report.plots.dots import Dot, DotPanel, draw_dots
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import BENCH_FILE

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
_NOTES = (
    "Ratio: subject ÷ baseline. Of times, medians of alternated iterations and the median of the rounds' ratios; "
    "[ ]: half of the rounds lie within. Bytes are exact.",
)


def beside_baselines(context: Context) -> Contribution:
    """A table and a plot for each device of all benchmark rows."""
    measured = context.results.rows(BENCH_FILE)
    rows = newest(measured)
    sections = [
        _device_section(
            str(device), of_device, number, (measured["device_name"] == device).sum() - len(of_device)
        )
        for number, (device, of_device) in enumerate(rows.groupby("device_name", sort=True), start=1)
    ]
    failed = tuple(_failed(context.results))
    top = Section("baselines", "Beside the baselines", lead=(*_LEAD, *failed))
    return Contribution(
        sections=(top, *sections) if sections or failed else (),
        frames={BENCH_FILE: rows.drop(columns=["run", "decides"])} if len(rows) else {},
        sentence=_sentence(rows) if len(rows) else "",
        skipped=tuple(_cells_without_rows(context.results)),
    )


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the measurements of the same thing the latest, in the order of first appearance in the table."""
    in_time = rows.sort_values("finished_utc", kind="stable")
    kept = in_time.drop_duplicates(SAME, keep="last").sort_index()
    best = kept.groupby(_ASKED, dropna=False)["ratio"].transform("min")
    return kept.assign(decides=kept["target"].notna() & (kept["ratio"] == best))


def _failed(results: Results) -> Iterator[str]:
    for run in results.runs:
        failed = run.provenance.get("failed")
        if run.provenance.get("kind") == "bench" and isinstance(failed, dict):
            for row, reason in failed.items():
                yield f"{row} was not measured by run {run.path.name}: {reason}."


def _cells_without_rows(results: Results) -> Iterator[tuple[str, str]]:
    cells = results.cells[results.cells["kind"] == "bench"]
    for number, of_run in cells.groupby("run"):
        path = str(results.runs[int(str(number))].path)
        yield path, f"{len(of_run)} cells of kind bench: what is shown of a benchmark is its {BENCH_FILE}"


def _sentence(rows: pd.DataFrame) -> str:
    texts = []
    for device, of_device in rows.groupby("device_name", sort=True):
        wanted = of_device[of_device["decides"]]
        met = int((wanted["ratio"] <= wanted["target"]).sum())
        texts.append(f"{met} of {len(wanted)} targets met on {_device(device)}")
    count = rows["row"].nunique()
    return f"Beside its baselines ({count} row{'s' * (count != 1)} of the benchmark): {', '.join(texts)}."


def _device(name: Any) -> str:
    return str(name) or UNKNOWN_HARDWARE


# Sections ---------------------------------------------------------------------------------------


def _device_section(device: str, rows: pd.DataFrame, number: int, replaced: int) -> Section:
    name = f"baselines-{number}"
    dots = [_dot(row) for _, row in rows.iterrows()]
    caption = (
        "Ratio of the subject to its baseline, one point a row; bars: half of the rounds; thick tick: the largest "
        "ratio that is wanted; hollow and red: not met. n = 1 measurement a row"
        f"{_rounds(rows)}; {_device(device)}."
    )
    panel = DotPanel("Ratio to the baseline", "subject ÷ baseline [×]", tuple(_distinct(dots)), no_change=1.0)
    figure = Figure(f"{name}-ratios", "Ratios to the baselines", caption, draw_dots, lambda: [panel])
    return Section(
        f"{name}-device",
        _device(device),
        (_table(rows, name, replaced), figure),
        level=2,
    )


def _rounds(rows: pd.DataFrame) -> str:
    rounds = sorted({int(count) for count in rows["rounds"].dropna()})
    return f", times of {' or '.join(map(str, rounds))} rounds" if rounds else ""


def _table(rows: pd.DataFrame, name: str, replaced: int) -> Table:
    headings = (
        Heading("row", numeric=False), Heading("subject", numeric=False), Heading("baseline", numeric=False),
        Heading("÷ baseline"), Heading("wanted"), Heading("target", numeric=False),
    )  # fmt: skip
    notes = list(_NOTES)
    if replaced:
        notes.append(
            f"{replaced} earlier measurements of the same row, problem, subject, baseline and device are "
            "replaced by the latest; nothing is averaged."
        )
    if (rows["target"].notna() & ~rows["decides"]).any():
        notes.append(
            "Of several subjects beside one baseline the best decides; another is told as another way."
        )
    for remark, alike in rows[rows["remark"] != ""].groupby("remark", sort=False):
        notes.append(f"{', '.join(dict.fromkeys(alike['row']))}: {remark}.")
    cells = tuple(_cells(row) for _, row in rows.iterrows())
    return Table(name, "Subjects beside their baselines", headings, cells, tuple(dict.fromkeys(notes)))


def _cells(row: "pd.Series[Any]") -> tuple[TableCell, ...]:
    words, _ = _quantity(row)
    spread = ""
    if pd.notna(row["ratio_low"]) and pd.notna(row["ratio_high"]):
        spread = f"[{numbers.ratio(row['ratio_low'])[:-1]}, {numbers.ratio(row['ratio_high'])[:-1]}]"
    return (
        TableCell(row["row"], f"{words}: {row['problem']}", row["row"]),
        *(_side(row, side) for side in ("subject", "baseline")),
        TableCell(numbers.ratio(row["ratio"]), spread, row["ratio"]),
        TableCell(DASH, tone="muted")
        if pd.isna(row["target"])
        else TableCell(f"≤ {row['target']:g}", value=row["target"]),
        _verdict(row),
    )


def _side(row: "pd.Series[Any]", side: str) -> TableCell:
    _, unit = _quantity(row)
    value = float(row[f"{side}_value"])
    return TableCell(str(row[side]), scale_for(unit, [value]).text(value), str(row[side]))


def _quantity(row: "pd.Series[Any]") -> tuple[str, Unit]:
    return _QUANTITIES.get(row["quantity"], (str(row["quantity"]), "count"))


def _verdict(row: "pd.Series[Any]") -> TableCell:
    if pd.isna(row["target"]):
        return TableCell("only reported", tone="muted")
    if not row["decides"]:
        return TableCell("another way", tone="muted")
    return (
        TableCell("met", value=0.0, tone="good") if _met(row) else TableCell("not met", value=1.0, tone="bad")
    )


def _met(row: "pd.Series[Any]") -> bool | None:
    return None if pd.isna(row["target"]) else bool(row["ratio"] <= row["target"])


# The plot ---------------------------------------------------------------------------------------


def _dot(row: "pd.Series[Any]") -> Dot:
    spread = None
    if pd.notna(row["ratio_low"]) and pd.notna(row["ratio_high"]):
        spread = (float(row["ratio_low"]), float(row["ratio_high"]))
    target = float(row["target"]) if row["decides"] else None
    details = (_quantity(row)[0], f"against {row['baseline']}", str(row["problem"]))
    ratio = float(row["ratio"])
    return Dot(str(row["row"]), ratio, numbers.ratio(ratio), spread, target, details=details)


def _distinct(dots: list[Dot]) -> list[Dot]:
    """The dots with as much of their details in the label as tells them apart."""
    return [dot.named([other for other in dots if other is not dot]) for dot in dots]
