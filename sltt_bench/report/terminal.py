"""The report in a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sltt_bench.report.document import Cell, Report, Section, Table, Tone, Verdict

_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "muted": "dim"}
_VERDICT_STYLES = {"held": "green", "not held": "bold red", "inconclusive": "yellow", "not measured": "dim"}


def print_report(report: Report, console: Console) -> None:
    """Summary, verdicts, every section's first tables, and how much was skipped."""
    console.print()
    console.print(" ".join(report.sentences), highlight=False)
    if report.verdicts:
        console.print()
        _print_verdicts(report.verdicts, console)
    for section in report.sections:
        _print_section(section, console)
    for path, reason in report.skipped:
        console.print(f"[dim]skipped {escape(path)}: {escape(reason)}[/dim]", highlight=False, soft_wrap=True)


def _print_section(section: Section, console: Console) -> None:
    console.print()
    if section.level == 1:
        console.rule(f"[bold]{escape(section.title)}", align="left")
    else:
        console.print(f"[bold]{escape(section.title)}[/bold]", highlight=False)
    if section.chips:
        console.print(f"[dim]{escape(' · '.join(section.chips))}[/dim]", highlight=False)
    for sentence in section.lead:
        console.print(escape(sentence), highlight=False)
    for block in section.blocks:
        if isinstance(block, Table):
            print_table(block, console)


def print_table(table: Table, console: Console) -> None:
    """One table with its notes."""
    rich = RichTable(
        title=escape(table.title), title_justify="left", title_style="italic", header_style="bold"
    )
    for heading in table.headings:
        unit = f"\n[dim]{escape(heading.unit)}[/dim]" if heading.unit else ""
        rich.add_column(escape(heading.text) + unit, justify="right" if heading.numeric else "left")
    for row in table.rows:
        rich.add_row(*(_markup(cell) for cell in row))
    console.print(rich)
    for note in table.notes:
        console.print(f"  [dim]{escape(note)}[/dim]", highlight=False)


def _markup(cell: Cell) -> str:
    style = _STYLES[cell.tone]
    text = f"[{style}]{escape(cell.text)}[/{style}]" if style else escape(cell.text)
    return f"{text} [dim]{escape(cell.detail)}[/dim]" if cell.detail else text


def _print_verdicts(verdicts: tuple[Verdict, ...], console: Console) -> None:
    rich = RichTable(title="Claims", title_justify="left", title_style="italic", header_style="bold")
    for heading in ("verdict", "recipe", "claim", "measured", "on", "source"):
        rich.add_column(heading)
    for verdict in verdicts:
        style = _VERDICT_STYLES[verdict.word]
        estimated = " (estimated)" if verdict.estimated else ""
        rich.add_row(
            f"[{style}]{verdict.word}[/{style}]{estimated}",
            escape(verdict.recipe),
            escape(verdict.statement),
            escape("\n".join(text for text in (verdict.measured, verdict.reason) if text)),
            escape(", ".join(verdict.conditions)),
            escape(str(verdict.claim.get("source", ""))),
        )
    console.print(rich)
