"""Writes the report's files: tables, figures in both widths, and the pages made of them."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from sltt_bench.report import html, latex, markdown
from sltt_bench.report.document import Figure, Report, Table, Width
from sltt_bench.report.plots import style
from sltt_bench.results.writer import ResultsError

FIGURES_FOLDER = "figures"
LATEX_FOLDER = "latex"
WIDTHS: tuple[Width, ...] = ("double", "column")


def write(
    report: Report, frames: Mapping[str, pd.DataFrame], target: Path, formats: Sequence[str]
) -> list[Path]:
    """Write everything that the formats ask for below `target`; returns the files. Raises ResultsError."""
    contents: dict[str, bytes] = {}
    if "csv" in formats:
        for name, frame in frames.items():
            contents[name] = frame.to_csv(index=False).encode()
    drawings = draw_all(figures_of(report), formats)
    for (name, width, kind), content in drawings.items():
        if kind in formats:
            contents[figure_path(name, width, kind)] = content
    if "html" in formats:
        svgs = {(name, width): svg.decode() for (name, width, kind), svg in drawings.items() if kind == "svg"}
        contents["report.html"] = html.render(report, svgs).encode()
    if "markdown" in formats:
        shown = next((kind for kind in ("png", "svg") if kind in formats), None)
        pictures = {name: figure_path(name, "double", shown) for name, _, _ in drawings} if shown else {}
        contents["report.md"] = markdown.render(report, pictures).encode()
    if "latex" in formats:
        for table, conditions in _tables_of(report):
            contents[f"{LATEX_FOLDER}/{table.name}.tex"] = latex.table(table, conditions).encode()
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


def _tables_of(report: Report) -> list[tuple[Table, str]]:
    return [
        (block, ", ".join(section.chips))
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Table)
    ]


def figure_path(name: str, width: Width, kind: str) -> str:
    """Where a figure lies in the report's folder; the one for a single column says so in its name."""
    return f"{FIGURES_FOLDER}/{name}{'-column' if width == 'column' else ''}.{kind}"


def draw_all(figures: Sequence[Figure], formats: Sequence[str]) -> dict[tuple[str, Width, str], bytes]:
    """(name, width, "svg" or "png") → the file's content, for what the formats need."""
    kinds = [kind for kind in ("svg", "png") if kind in formats or (kind == "svg" and "html" in formats)]
    drawn: dict[tuple[str, Width, str], bytes] = {}
    if not kinds:
        return drawn
    with style.applied():
        for figure, width in product(figures, WIDTHS):
            for kind, content in style.files(figure.draw(width), kinds).items():
                drawn[figure.name, width, kind] = content
    return drawn


def first_to_open(written: Sequence[Path]) -> Path:
    """The file that a reader wants first."""
    order = {"report.html": 0, "report.md": 1, "summary.csv": 2}
    return min(written, key=lambda path: order.get(path.name, 3))
