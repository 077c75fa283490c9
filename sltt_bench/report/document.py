"""The report as a document: sections of tables, figures and gaps, before any of them is rendered.

Whoever computes writes these; whoever renders (terminal, HTML, Markdown, LaTeX) reads nothing else.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

    from sltt_bench.report.groups import Group
    from sltt_bench.results.reader import Results
    from sltt_bench.results.tables import Skipped

Tone = Literal["plain", "good", "bad", "muted"]
Width = Literal["column", "double"]


@dataclass(frozen=True)
class TableCell:
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
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...] = ()
    secondary: bool = False
    """Whether a reader in a hurry may leave it folded."""
    across: str = ""
    """What all headings but the first name: the first heading of the table turned on its side."""


Row = TypeVar("Row")
Column = tuple[Heading, Callable[[Row], TableCell]]
"""A heading, and the cell under it for what a row is of."""


def table_of(
    name: str,
    title: str,
    columns: Sequence[Column[Row]],
    rows: Iterable[Row],
    notes: Iterable[str] = (),
    *,
    secondary: bool = False,
) -> Table:
    """The table with these columns and a row for each of `rows`; a note that recurs stands once."""
    return Table(
        name=name,
        title=title,
        headings=tuple(heading for heading, _ in columns),
        rows=tuple(tuple(cell(row) for _, cell in columns) for row in rows),
        notes=tuple(dict.fromkeys(notes)),
        secondary=secondary,
    )


@dataclass(frozen=True)
class Figure:
    """A plot that is drawn when a renderer needs it."""

    name: str
    """Unique in the report; the file's name."""
    title: str
    caption: str
    """What is shown, sample counts and hardware."""
    paint: Callable[[Any, Width], "Drawing"]
    """Draws the content at a width; all that is drawn is in the content."""
    content: Callable[[], Any]
    """Panels or the like: data classes, sequences, mappings, arrays, numbers and words."""

    def draw(self, width: Width) -> "Drawing":
        """The plot at this width."""
        return self.paint(self.content(), width)


@dataclass(frozen=True)
class MissingFigure:
    """A plot that the data cannot support, and the command that would change that."""

    title: str
    reason: str
    command: str


Block = Table | Figure | MissingFigure


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
    page: str = ""
    """Level 1: whose page it stands on, a recipe's name or another heading; '' for its own title."""
    cards: "tuple[ClaimCard, ...]" = ()
    """The claims that a sentence of the lead sums up."""

    @property
    def tables(self) -> list[Table]:
        """Those of its blocks."""
        return [block for block in self.blocks if isinstance(block, Table)]


VerdictWord = Literal["held", "not held", "inconclusive", "n too small", "not comparable", "not measured"]


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
    """Pairs, or seeds of a single method."""
    exact: bool = False
    """Whether the figure is counted, so that the value alone decides."""
    figure: str = ""
    """Which figure was used: "live tensors", "median of warm epochs"."""
    conditions: tuple[str, ...] = ()
    """Where it was measured, or tried and found impossible; empty if nobody tried."""
    reason: str = ""
    """Why there is no verdict."""
    caveats: tuple[str, ...] = ()
    """What the integrity pass objects to, and what else a reader must know of the value."""
    beside: str = ""
    """What the same cells say of the claim by a figure that is counted exactly, where the value leaves it open."""
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
        exact = ", exact" if self.exact and not self.estimated else ""
        return f"{self.figure}, " + ("estimated" if self.estimated else f"n = {self.n}{exact}")

    @property
    def of_paper(self) -> bool:
        """Whether a published source makes the claim, and not this project."""
        return not str(self.claim.get("source", "")).startswith(_OWN_SOURCES)

    @property
    def evidence(self) -> str:
        """The value in a few words, or why there is none: "0.27×, exact"."""
        basis = "estimated" if self.estimated else "exact" if self.exact else f"n = {self.n}"
        value = f"{self.measured}, {basis}" if self.measured else self.reason
        return f"{value}; {self.beside}" if self.beside else value


_OWN_SOURCES = ("this project", "derived")
"""How the source of a claim begins that nobody but this project makes."""


@dataclass(frozen=True)
class ClaimCard:
    """One claim of one source with everything that was found out about it, on whatever network or backend."""

    says: str
    source: str
    verdicts: tuple[Verdict, ...]

    @property
    def of_paper(self) -> bool:
        """Whether a published source makes the claim."""
        return self.verdicts[0].of_paper

    @property
    def findings(self) -> tuple[Verdict, ...]:
        """The verdicts that say something."""
        return tuple(verdict for verdict in self.verdicts if verdict.is_finding)

    @property
    def word(self) -> str:
        """The verdict that all findings share, or how often each fell; estimates are marked."""
        counts = Counter(f"{v.word} by estimate" if v.estimated else v.word for v in self.findings)
        if not counts:
            return "not measured"
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{count} {_IN_A_LIST.get(word, word)}" for word, count in counts.items())

    @property
    def answer(self) -> str:
        """The values behind the word, each with its own where they differ; of what nobody measured, what would measure it."""
        if not self.findings:
            open_one = self.verdicts[0]
            return f"{open_one.reason}; {open_one.command}" if open_one.command else open_one.reason
        alike = len({verdict.word for verdict in self.findings}) == 1
        shown = []
        for verdict in self.findings[:_MOST_VALUES]:
            backends = (word.removeprefix("backend ") for word in verdict.conditions if "backend " in word)
            where = ", ".join([verdict.recipe, *backends])
            text = ", ".join([f"{verdict.evidence} ({where})", *self.settings(verdict)])
            shown.append(text if alike else f"{verdict.word}: {text}")
        more = len(self.findings) - len(shown)
        return "; ".join(shown) + (f" and {more} more" if more else "")

    def settings(self, verdict: Verdict) -> list[str]:
        """Of a finding's conditions, beside its backend: what is not as the recipe has it, and what tells it from others of
        its recipe."""
        kind = verdict.recipe, verdict.estimated
        alike = [each for each in self.findings if (each.recipe, each.estimated) == kind]
        return [
            word
            for word in verdict.conditions
            if word.startswith(_SETTINGS)
            or ("backend " not in word and any(word not in each.conditions for each in alike))
        ]

    @property
    def caveats(self) -> tuple[str, ...]:
        """What stands beside some of its verdicts."""
        return tuple(dict.fromkeys(caveat for verdict in self.findings for caveat in verdict.caveats))


_IN_A_LIST = {"n too small": "measured (n too small)"}
"""Verdicts that do not read well after a count → how they do."""
_SETTINGS = ("tuned", "at learning rate")
"""How conditions begin that are not the recipe's."""
_MOST_VALUES = 3
"""Values that a claim's sentence names."""


def claim_cards(verdicts: Sequence[Verdict]) -> tuple[ClaimCard, ...]:
    """One card for each claim; the published ones first, and of each kind what was found out before the rest."""
    cards: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        about = str(verdict.claim.get("says")), str(verdict.claim.get("source"))
        cards.setdefault(about, []).append(verdict)
    made = [ClaimCard(says, source, tuple(own)) for (says, source), own in cards.items()]
    return tuple(sorted(made, key=lambda card: (not card.of_paper, not card.findings)))


@dataclass(frozen=True)
class Contribution:
    """What one maker of sections adds to the report."""

    sections: tuple[Section, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    frames: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    """File name → table for readers with other tools."""
    sentence: str = ""
    """For the top: what was looked at."""
    key_table: Table | None = None
    """The answer in one table."""
    key_figure: Figure | None = None
    """The answer in one figure."""
    skipped: "tuple[Skipped, ...]" = ()
    """What was read but cannot be shown."""


@dataclass(frozen=True)
class Context:
    """What every maker of sections is given."""

    results: "Results"
    baseline: str

    @cached_property
    def groups(self) -> "list[Group]":
        """The measured cells in comparable groups."""
        from sltt_bench.report.grouping import make_groups

        return make_groups(self.results)


@dataclass(frozen=True)
class Origin:
    """What some runs were made with, and the commands that made them."""

    facts: Mapping[str, str]
    """Versions and machine, under the names that a reader sees."""
    commands: tuple[tuple[str, str], ...]
    """Each command with the runs that it made."""
    title: str
    """Version and machine, and in what else it differs from others of the same."""


@dataclass(frozen=True)
class Report:
    """Everything that a renderer shows."""

    title: str
    sentences: tuple[str, ...]
    """What was looked at."""
    verdicts: tuple[Verdict, ...]
    key_blocks: tuple[Block, ...]
    """The first screen's figure and table."""
    sections: tuple[Section, ...]
    provenance: tuple[Origin, ...]
    skipped: "tuple[Skipped, ...]"
    """What was not read."""
    baseline: str
    made_by: str

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All of the first screen and of the sections, in order."""
        return (*self.key_blocks, *(block for section in self.sections for block in section.blocks))

    @property
    def claims(self) -> dict[str, list[ClaimCard]]:
        """Heading → the claims below it, one card each; what nobody claims is left out."""
        below: dict[str, list[ClaimCard]] = {}
        for card in claim_cards(self.verdicts):
            heading = "Claims of the paper" if card.of_paper else "Expectations of this project"
            below.setdefault(heading, []).append(card)
        return below
