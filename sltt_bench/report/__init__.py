"""The report: any pile of result folders as tables, plots, verdicts and one page.

    results → groups of comparable cells → sections of a document → terminal, CSV, plots, HTML, ...

A further kind of section is a module of its own with one function, registered in SECTIONS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from sltt_bench.common.errors import nearest

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

    from sltt_bench.report.document import Context, Contribution, Report, Verdict
    from sltt_bench.results.reader import Results
    from sltt_bench.results.tables import Skipped

FORMATS = (
    "terminal", "csv", "png", "png-column", "svg", "svg-column", "markdown", "html", "latex", "json",
)  # fmt: skip

BASELINE = "bptt"
"""What ratios refer to, unless another method is asked for."""

SECTIONS: dict[str, str] = {
    "study": "sltt_bench.report.sections.studies:studies",
    "run": "sltt_bench.report.sections.runs.section:runs",
    "trial": "sltt_bench.report.sections.tuning:tuning",
    "estimate": "sltt_bench.report.sections.estimates.section:estimated",
    "bench": "sltt_bench.report.sections.benchmark:beside_baselines",
    "analysis": "sltt_bench.report.sections.gradients.section:gradients",
}
"""Kind of cell, or study → "module:function" that makes sections of its results (Context → Contribution).

Cells of a kind that is not listed are named among what was skipped.
"""


@dataclass(frozen=True)
class ReportOutcome:
    """What came out of `make_report`."""

    verdicts: "tuple[Verdict, ...]"
    skipped: "tuple[Skipped, ...]"
    files: tuple[Path, ...]
    """Everything written."""

    @property
    def claims_hold(self) -> bool:
        """False if some claim does not hold; what was not measured or is inconclusive does not fail."""
        return all(verdict.word != "not held" for verdict in self.verdicts)


def make_report(
    sources: Sequence[Path],
    out: Path | None = None,
    baseline: str | None = None,
    formats: Sequence[str] = ("terminal", "csv", "svg", "markdown", "html"),
    *,
    full: bool = False,
    console: "Console",
) -> ReportOutcome:
    """Read the folders, compare what is comparable and write the report in the asked formats.

    Files go to `out`, by default the folder `report` inside the first source. `baseline`: None is
    BASELINE, whether it was run or not. Raises ResultsError if a source is no folder or none holds results, if
    a format or the baseline is unknown, or if the report cannot be written.
    """
    from rich.markup import escape

    from sltt_bench.report.render import files
    from sltt_bench.report.render.terminal import print_report
    from sltt_bench.results.reader import read_results
    from sltt_bench.results.schema import BENCH_FILE, ESTIMATES_FILE
    from sltt_bench.results.writer import ResultsError

    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        hint = nearest(unknown[0], FORMATS)
        raise ResultsError(f"--format {unknown[0]}: unknown{hint}; known formats are {', '.join(FORMATS)}")
    results = read_results(sources)
    if results.cells.empty and results.rows(BENCH_FILE).empty:
        where = ", ".join(map(str, sources))
        raise ResultsError(f"{where}: no results in or below it{results.reasons}; run a recipe first")
    methods = {str(name) for name in results.cells["method"]} | {
        str(m) for m in results.rows(ESTIMATES_FILE)["method"]
    }
    if baseline is not None and baseline not in methods:
        known = ", ".join(sorted(methods))
        raise ResultsError(
            f"--baseline {baseline}: no such method here{nearest(baseline, methods)}; there are {known}"
        )
    report, frames = _assembled(results, baseline or BASELINE)
    if "terminal" in formats:
        print_report(report, console, full=full)
    target = out if out is not None else sources[0] / "report"
    written = files.write(report, frames, target, formats)
    if written:
        console.print(
            f"[dim]report: {escape(str(files.first_to_open(written)))}[/dim]", soft_wrap=True, highlight=False
        )
    return ReportOutcome(report.verdicts, results.skipped, tuple(written))


def print_run(folders: Sequence[Path], *, console: "Console", baseline: str = BASELINE) -> None:
    """Print what the folders of a command's own runs say: the terminal form of their sections.

    Whatever the kind of the cells: run, estimate, analysis.
    """
    from sltt_bench.report.render.terminal import print_sections
    from sltt_bench.results.reader import print_unread, read_results

    report, _ = _assembled(read_results(folders), baseline)
    print_sections(report.sections, console)
    print_unread(report.skipped, console)


def _assembled(results: "Results", baseline: str) -> "tuple[Report, dict[str, DataFrame]]":
    from sltt_bench.report.assemble import assemble
    from sltt_bench.report.document import Context

    return assemble(Context(results, baseline), {kind: _load(where) for kind, where in SECTIONS.items()})


def _load(where: str) -> "Callable[[Context], Contribution]":
    maker: Callable[[Context], Contribution] = resolve_name(where)
    return maker
