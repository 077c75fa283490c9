"""Writes the report's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sltt_bench.report.document import Figure, Report
from sltt_bench.report.plots import style
from sltt_bench.results.writer import ResultsError

FIGURES_FOLDER = "figures"


def write(
    report: Report, frames: Mapping[str, pd.DataFrame], target: Path, formats: Sequence[str]
) -> list[Path]:
    """Write everything that the formats ask for below `target`; returns the files. Raises ResultsError."""
    contents: dict[str, bytes] = {}
    if "csv" in formats:
        for name, frame in frames.items():
            contents[name] = frame.to_csv(index=False).encode()
    for figure in figures_of(report):
        for kind in ("svg", "png"):
            if kind in formats:
                with style.applied():
                    drawn = figure.draw("double")
                    content = style.png(drawn) if kind == "png" else style.svg(drawn).encode()
                contents[f"{FIGURES_FOLDER}/{figure.name}.{kind}"] = content
    try:
        for name, content in contents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
    except OSError as error:
        raise ResultsError(
            f"{target}: the report cannot be written ({error}); choose another --out"
        ) from None
    return [target / name for name in contents]


def figures_of(report: Report) -> list[Figure]:
    """Every figure of the report, in order."""
    return [block for section in report.sections for block in section.blocks if isinstance(block, Figure)]


def first_to_open(written: Sequence[Path]) -> Path:
    """The file that a reader wants first."""
    order = {"report.html": 0, "report.md": 1, "summary.csv": 2}
    return min(written, key=lambda path: order.get(path.name, 3))
