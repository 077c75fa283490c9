"""The report as a document: sections of tables, figures and gaps, before any of them is rendered.

Whoever computes writes these; whoever renders (terminal, HTML, Markdown, LaTeX) reads nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

    from sltt_bench.report.groups import Group
    from sltt_bench.results.reader import Results

Tone = Literal["plain", "good", "bad", "muted"]
Width = Literal["column", "double"]


@dataclass(frozen=True)
class Cell:
    """One table cell."""

    text: str
    detail: str = ""
    """Spread or interval, set smaller."""
    value: float | str | None = None
    """What the column sorts by; None comes last."""
    tone: Tone = "plain"
    """Good and bad are used only where an interval excludes "no difference", or a target is met or missed."""


@dataclass(frozen=True)
class Heading:
    """One column's heading."""

    text: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table with its title and the notes that keep it honest."""

    name: str
    """Unique in the report; part of file names."""
    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    secondary: bool = False
    """Whether a reader in a hurry may leave it folded."""


@dataclass(frozen=True)
class Figure:
    """A plot that is drawn when a renderer needs it."""

    name: str
    """Unique in the report; the file's name."""
    title: str
    caption: str
    """What is shown, sample counts and hardware."""
    draw: Callable[[Width], "Drawing"]


@dataclass(frozen=True)
class Missing:
    """A plot that the data cannot support, and the command that would change that."""

    title: str
    reason: str
    command: str


Block = Table | Figure | Missing


@dataclass(frozen=True)
class Section:
    """A part of the report with its own heading; level 1 holds level 2."""

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    lead: tuple[str, ...] = ()
    """Sentences below the heading."""
    level: Literal[1, 2] = 1
    folded: bool = False
    """Whether a page may show the heading only, until it is asked for more."""
    chips: tuple[str, ...] = ()
    """The conditions under which everything below was measured."""


VerdictWord = Literal["held", "not held", "inconclusive", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """What became of one claim on one set of conditions."""

    recipe: str
    claim: Mapping[str, Any]
    """As the recipe says it."""
    word: VerdictWord
    statement: str
    """The claim as a comparison: "peak memory of sltt ÷ bptt ≤ 0.30"."""
    measured: str = ""
    """The value with its interval; empty if not measured."""
    value: float | None = None
    """Ratio, share, bytes or seconds; for differences of accuracy percentage points, method − baseline."""
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    """The threshold on the scale of `value`."""
    at_most: bool = True
    """Whether the value must not exceed the limit (else: not fall below it)."""
    n: int = 0
    """Paired seeds."""
    figure: str = ""
    """Which figure was used: "live tensors", "median of warm epochs"."""
    conditions: tuple[str, ...] = ()
    """Where it was measured, or tried and found impossible; empty if nobody tried."""
    reason: str = ""
    """Why there is no verdict, or what limits it."""
    command: str = ""
    """What would measure it."""
    estimated: bool = False
    """Whether the value was computed rather than measured."""

    @property
    def is_finding(self) -> bool:
        """Whether something was found out: a verdict, or that memory does not suffice."""
        return self.word != "not measured" or bool(self.conditions)

    @property
    def basis(self) -> str:
        """What the value is a figure of, and how often it was measured."""
        return f"{self.figure}, " + ("estimated" if self.estimated else f"n = {self.n}")


@dataclass(frozen=True)
class Contribution:
    """What one maker of sections adds to the report."""

    sections: tuple[Section, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    frames: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    """File name → table for readers with other tools."""
    sentences: tuple[str, ...] = ()
    """For the summary at the top."""
    skipped: tuple[tuple[str, str], ...] = ()
    """What was read but cannot be shown: path and reason."""


@dataclass(frozen=True)
class Context:
    """What every maker of sections is given."""

    results: "Results"
    baseline: str

    @cached_property
    def groups(self) -> "list[Group]":
        """The measured cells in comparable groups."""
        from sltt_bench.report.groups import make_groups

        return make_groups(self.results)


@dataclass(frozen=True)
class Origin:
    """What some runs were made with, and the commands that made them."""

    facts: Mapping[str, str]
    """Versions and machine, under the names that a reader sees."""
    commands: tuple[tuple[str, str], ...]
    """Each command with the runs that it made."""


@dataclass(frozen=True)
class Report:
    """Everything that a renderer shows."""

    title: str
    sentences: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]
    provenance: tuple[Origin, ...]
    skipped: tuple[tuple[str, str], ...]
    """What was not read: path and reason."""
    baseline: str
    made_by: str
