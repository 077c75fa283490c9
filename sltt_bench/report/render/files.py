"""Writes the report's files: tables, figures, and the pages made of them."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sltt_bench.common.printable import printable
from sltt_bench.report.document import Figure, Report, Width
from sltt_bench.report.plots import style
from sltt_bench.report.render import html, json_file, latex, markdown
from sltt_bench.report.render.earlier_drawings import EarlierDrawings, digest_of_drawing
from sltt_bench.results.writer import ResultsError

FIGURES_FOLDER = "figures"
LATEX_FOLDER = "latex"
WIDTHS: tuple[Width, ...] = ("double", "column")
KINDS = ("svg", "png")


def write(
    report: Report, frames: Mapping[str, pd.DataFrame], target: Path, formats: Sequence[str]
) -> list[Path]:
    """Write everything that the formats ask for below `target`; returns the files. Raises ResultsError."""
    contents: dict[str, bytes] = {}
    if "csv" in formats:
        for name, frame in frames.items():
            contents[name] = printable(frame.to_csv(index=False)).encode()
    earlier = EarlierDrawings.read(target / FIGURES_FOLDER)
    first_screen = {block.name for block in report.key_blocks if isinstance(block, Figure)}
    drawings = draw_all(figures_of(report), formats, earlier, first_screen)
    figures = {place: drawing for place, drawing in drawings.items() if format_name(*place[1:]) in formats}
    contents |= {figure_path(*place): content for place, (_, content) in figures.items()}
    if "markdown" in formats:
        shown = next((kind for kind in ("png", "svg") if kind in formats), None)
        pictures = {name: figure_path(name, "double", shown) for name, _, _ in drawings} if shown else {}
        contents["report.md"] = printable(markdown.render(report, pictures)).encode()
    if "json" in formats:
        contents["report.json"] = json_file.render(report).encode()
    if "latex" in formats:
        for section in report.sections:
            for table in section.tables:
                text = latex.table(table, ", ".join(section.chips))
                contents[f"{LATEX_FOLDER}/{table.name}.tex"] = printable(text).encode()
    if "html" in formats:
        svgs, narrow = (
            {name: svg.decode() for (name, *how), (_, svg) in drawings.items() if how == [width, "svg"]}
            for width in WIDTHS
        )
        beside = [name for name in contents if "/" not in name]
        on_a_phone = {name: svg for name, svg in narrow.items() if name in first_screen}
        pages = html.render(report, svgs, _downloads(figures), beside, on_a_phone)
        contents |= {name: printable(page).encode() for name, page in pages.items()}
    try:
        for name, content in contents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        if figures:
            earlier.add({Path(figure_path(*place)).name: drawing for place, drawing in figures.items()})
    except OSError as error:
        raise ResultsError(
            f"{target}: the report cannot be written ({error}); choose another --out"
        ) from None
    return [target / name for name in contents]


def _downloads(written: Iterable[tuple[str, Width, str]]) -> dict[str, list[tuple[str, str]]]:
    """Figure → (label, file) of what was written of it."""
    links: dict[str, list[tuple[str, str]]] = {}
    for name, width, kind in written:
        label = f"{kind.upper()}{', one column' if width == 'column' else ''}"
        links.setdefault(name, []).append((label, figure_path(name, width, kind)))
    return links


def figures_of(report: Report) -> list[Figure]:
    """Every figure of the report, in order."""
    return list({block.name: block for block in report.blocks if isinstance(block, Figure)}.values())


def figure_path(name: str, width: Width, kind: str) -> str:
    """Where a figure lies in the report's folder; the one for a single column says so in its name."""
    return f"{FIGURES_FOLDER}/{name}{'-column' if width == 'column' else ''}.{kind}"


def format_name(width: Width, kind: str) -> str:
    """What asks for a figure's file."""
    return f"{kind}-column" if width == "column" else kind


Drawing = tuple[str, bytes]
"""The digest of what is drawn, and the file's content."""


def draw_all(
    figures: Sequence[Figure], formats: Sequence[str], earlier: EarlierDrawings, first_screen: Collection[str]
) -> dict[tuple[str, Width, str], Drawing]:
    """(name, width, "svg" or "png") → the drawing, for what the formats need.

    A page holds each figure once, but those of the first screen in one column too, for a phone. What an earlier report drew, and would be drawn again as it is, is taken from there.
    """
    drawings: dict[tuple[str, Width, str], Drawing] = {}
    jobs = []
    for figure in figures:
        wanted = {*formats}
        if "html" in formats:
            wanted |= {"svg", *(["svg-column"] if figure.name in first_screen else [])}
        for width in WIDTHS:
            kinds = [kind for kind in KINDS if format_name(width, kind) in wanted]
            digest = digest_of_drawing(figure, width) if kinds else ""
            for kind in kinds:
                content = earlier.content(Path(figure_path(figure.name, width, kind)).name, digest)
                drawings[figure.name, width, kind] = digest, content or b""
            if missing := [kind for kind in kinds if not drawings[figure.name, width, kind][1]]:
                jobs.append(Job(figure, width, missing))
    for job, contents in zip(jobs, _drawn(jobs), strict=True):
        for kind, content in contents.items():
            place = job.figure.name, job.width, kind
            drawings[place] = drawings[place][0], content
    return drawings


@dataclass(frozen=True)
class Job:
    """A figure that is to be drawn once, for one file or two."""

    figure: Figure
    width: Width
    kinds: Sequence[str]

    def draw(self) -> dict[str, bytes]:
        """Kind → content."""
        with style.applied():
            return style.files(self.figure.draw(self.width), self.kinds)


WORTH_A_PROCESS = 4
"""Drawings from which on a second process pays."""


def _drawn(jobs: Sequence[Job]) -> Iterator[dict[str, bytes]]:
    """The files of each job, in order; many are drawn by as many processes as there are processors.

    The processes are forked, where that is safe, so that they have the figures without a copy.
    """
    workers = 1
    if sys.platform == "linux" and "torch" not in sys.modules:
        workers = min(len(os.sched_getaffinity(0)), len(jobs) // (WORTH_A_PROCESS // 2))
    if workers < 2:
        yield from map(Job.draw, jobs)
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=_inherit, initargs=(jobs,)
    ) as pool:
        yield from pool.map(_draw_inherited, range(len(jobs)))


_inherited: Sequence[Job] = ()
"""In a forked process: what there is to draw."""


def _inherit(jobs: Sequence[Job]) -> None:
    global _inherited
    _inherited = jobs
    # A figure leaves many cycles, and each search for them went through all results as well: a fifth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _draw_inherited(number: int) -> dict[str, bytes]:
    return _inherited[number].draw()


def first_to_open(written: Sequence[Path]) -> Path:
    """The file that a reader wants first."""
    order = {"report.html": 0, "report.md": 1, "summary.csv": 2}
    return min(written, key=lambda path: order.get(path.name, 3))
