"""The report in a terminal."""

from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable

from sltt_bench.report.document import Cell, Report, Section, Table, Tone, Verdict

_MOST_SKIPPED = 20
_MOST_UNMEASURED = 3
_MOST_TABLES = 8
"""Above so many, those that a reader in a hurry may leave folded are not printed."""
Justify = Literal["left", "right"]

_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "muted": "dim"}
_VERDICT_STYLES = {"held": "green", "not held": "bold red", "inconclusive": "yellow", "not measured": "dim"}


def print_report(report: Report, console: Console) -> None:
    """Summary, verdicts, every section's first tables, and how much was skipped."""
    console.print()
    for sentence in report.sentences:
        console.print(escape(sentence), highlight=False)
    if report.verdicts:
        console.print()
        _print_verdicts(report.verdicts, console)
    print_sections(report.sections, console)
    for path, reason in report.skipped[:_MOST_SKIPPED]:
        console.print(
            f"[dim]not read: {escape(path)}: {escape(reason)}[/dim]", highlight=False, soft_wrap=True
        )
    if (more := len(report.skipped) - _MOST_SKIPPED) > 0:
        console.print(f"[dim]not read: {more} more, listed in the report's files[/dim]")


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """Every section's tables; where they are many, the first of each."""
    tables = sum(isinstance(block, Table) for section in sections for block in section.blocks)
    short = tables <= _MOST_TABLES
    for section in sections:
        _print_section(section, console, everything=short)
    if not short:
        console.print("[dim]More tables, and every plot, are in the report's files.[/dim]", highlight=False)


def _print_section(section: Section, console: Console, *, everything: bool) -> None:
    tables = [b for b in section.blocks if isinstance(b, Table) and (everything or not b.secondary)]
    if section.blocks and (not tables or (section.folded and not everything)):
        return  # plots are for other formats
    console.print()
    if section.level == 1:
        console.rule(f"[bold]{escape(section.title)}", align="left")
    else:
        console.print(f"[bold]{escape(section.title)}[/bold]", highlight=False)
    if section.chips:
        console.print(f"[dim]{escape(' · '.join(section.chips))}[/dim]", highlight=False)
    for sentence in section.lead:
        console.print(escape(sentence), highlight=False)
    for table in tables:
        print_table(table, console)


def print_table(table: Table, console: Console) -> None:
    """One table with its notes; turned on its side where only that fits the terminal."""
    console.print(f"[italic]{escape(table.title)}[/italic]", highlight=False)
    ways = (_upright(table), _turned(table))
    fitting = (rich for rich in ways if _width(rich, console) <= console.width)
    console.print(next(fitting, _upright(table, names_wrap=True)))
    for note in table.notes:
        console.print(Padding(f"[dim]{escape(note)}[/dim]", (0, 0, 0, 2)), highlight=False)


def _width(rich: RichTable, console: Console) -> int:
    """What a table takes where nothing bounds it, in characters."""
    return Measurement.get(console, console.options.update(max_width=10_000), rich).maximum


def _upright(table: Table, *, names_wrap: bool = False) -> RichTable:
    rich = _frame()
    for heading in table.headings:
        unit = f"\n[dim]{escape(heading.unit)}[/dim]" if heading.unit else ""
        justify: Justify = "right" if heading.numeric else "left"
        rich.add_column(
            escape(heading.text) + unit, justify=justify, no_wrap=not (heading.numeric or names_wrap), overflow="fold"
        )  # fmt: skip
    for row in table.rows:
        rich.add_row(*(_markup(cell) for cell in row))
    return rich


def _turned(table: Table) -> RichTable:
    """A row for each heading, a column for each row: narrower where there are few rows."""
    rich = _frame()
    rich.add_column(escape(table.headings[0].text), no_wrap=True)
    for row in table.rows:
        rich.add_column(escape(row[0].text), justify="right")
    for place, heading in enumerate(table.headings[1:], start=1):
        unit = f" [dim]{escape(heading.unit)}[/dim]" if heading.unit else ""
        rich.add_row(escape(heading.text) + unit, *(_markup(row[place], "\n") for row in table.rows))
    return rich


def _frame() -> RichTable:
    return RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)


def _markup(cell: Cell, between: str = " ") -> str:
    style = _STYLES[cell.tone]
    text = f"[{style}]{escape(cell.text)}[/{style}]" if style else escape(cell.text)
    return f"{text}{between}[dim]{escape(cell.detail)}[/dim]" if cell.detail else text


def _print_verdicts(verdicts: tuple[Verdict, ...], console: Console) -> None:
    rich = RichTable(box=None, show_header=False, pad_edge=False)
    rich.add_column(no_wrap=True)
    rich.add_column()
    judged = [verdict for verdict in verdicts if verdict.is_finding]
    unmeasured = [verdict for verdict in verdicts if not verdict.is_finding]
    shown = judged + unmeasured[:_MOST_UNMEASURED]
    for verdict in shown:
        rich.add_row(*_verdict_cells(verdict))
    console.print("[italic]Claims[/italic]")
    console.print(Padding(rich, (0, 0, 0, 1)))
    if more := len(verdicts) - len(shown):
        console.print(f"  [dim]{more} more not measured, listed in the report's files[/dim]", highlight=False)


def _verdict_cells(verdict: Verdict) -> tuple[str, str]:
    style = _VERDICT_STYLES[verdict.word]
    estimated = "\nestimated" if verdict.estimated else ""
    lines = [f"[bold]{escape(verdict.recipe)}[/bold]: {escape(verdict.statement)}"]
    if verdict.measured:
        lines.append(f"[bold]{escape(verdict.measured)}[/bold] {escape(verdict.basis)}")
    found = (
        ", ".join(verdict.conditions),
        verdict.reason,
        verdict.command,
        f"source: {verdict.claim.get('source')}",
    )
    lines += [f"[dim]{escape(text)}[/dim]" for text in found if text]
    return f"[{style}]{verdict.word}[/{style}]{estimated}", "\n".join(lines)
