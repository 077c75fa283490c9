"""The report: any pile of result folders as tables, plots, verdicts and one page.

    results → groups of comparable cells → sections of a document → terminal, CSV, plots, HTML, ...

A further kind of section is a module of its own with one function, registered in SECTIONS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from sltt_bench.report.document import Context, Contribution, Verdict
    from sltt_bench.results.tables import Skipped

FORMATS = ("terminal", "csv", "png", "svg", "markdown", "html", "latex")

SECTIONS: dict[str, str] = {
    "run": "sltt_bench.report.measured:measured",
    "estimate": "sltt_bench.report.sections.estimates.section:estimated",
    "bench": "sltt_bench.report.sections.baselines:beside_baselines",
    "analysis": "sltt_bench.report.sections.gradients:gradients",
}
"""Kind of cell → "module:function" that makes sections of its results (Context → Contribution).

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
    baseline: str = "bptt",
    formats: Sequence[str] = ("terminal", "csv", "png", "svg", "markdown", "html"),
    *,
    console: "Console",
) -> ReportOutcome:
    """Read the folders, compare what is comparable and write the report in the asked formats.

    Files go to `out`, by default the folder `report` inside the first source. Raises ResultsError if a
    source is no folder, a format is unknown, or the report cannot be written.
    """
    from rich.markup import escape

    from sltt_bench.report.assemble import assemble
    from sltt_bench.report.document import Context
    from sltt_bench.report.render import files
    from sltt_bench.report.render.terminal import print_report
    from sltt_bench.results.reader import read_results
    from sltt_bench.results.writer import ResultsError

    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ResultsError(f"--format {unknown[0]}: known formats are {', '.join(FORMATS)}")
    results = read_results(sources)
    makers = {kind: _load(where) for kind, where in SECTIONS.items()}
    report, frames = assemble(Context(results, baseline), makers)
    if "terminal" in formats:
        print_report(report, console)
    target = out if out is not None else sources[0] / "report"
    written = files.write(report, frames, target, formats)
    if written:
        console.print(
            f"[dim]report: {escape(str(files.first_to_open(written)))}[/dim]", soft_wrap=True, highlight=False
        )
    return ReportOutcome(report.verdicts, results.skipped, tuple(written))


def print_run(folders: Sequence[Path], *, console: "Console", baseline: str = "bptt") -> None:
    """Print what a run's own folders say, one kind of cell after another."""
    from sltt_bench.report.document import Context
    from sltt_bench.report.render.terminal import print_sections
    from sltt_bench.report.sections.estimates.section import estimated
    from sltt_bench.report.sections.gradients import analysis_summary
    from sltt_bench.report.tables import run_summary
    from sltt_bench.results.reader import read_results

    results = read_results(folders)
    kinds = set(results.cells["kind"])
    if "run" in kinds:
        run_summary(folders, console=console, baseline=baseline)
    if "analysis" in kinds:
        analysis_summary(folders, console=console)
    if "estimate" in kinds:
        print_sections(estimated(Context(results, baseline)).sections, console)


def _load(where: str) -> "Callable[[Context], Contribution]":
    module, function = where.split(":")
    maker: Callable[[Context], Contribution] = getattr(import_module(module), function)
    return maker
