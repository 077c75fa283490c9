"""The report in a terminal."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable

from sltt_bench.common.format import counted
from sltt_bench.report.document import ClaimCard, Report, Section, Table, TableCell, Tone
from sltt_bench.report.numbers import first_of
from sltt_bench.results.reader import print_unread

_MOST_TABLES = 8
"""Above so many, those that a reader in a hurry may leave folded are not printed."""
_MOST_FOLDED = 5
"""Folded sections whose titles stand below the others."""
_RECORD_INDENT = 2

_STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "muted": "dim"}
_WORD_STYLES = {"held": "green", "not held": "bold red"}


def print_report(report: Report, console: Console, *, full: bool = False) -> None:
    """What was looked at, the table that answers, and last each claim with its verdict.

    `full`: before them every section's tables, and every place that was not read.
    """
    if full:
        print_sections(report.sections, console, everything=True)
    console.print()
    for sentence in report.sentences:
        console.print(escape(sentence), highlight=False)
    for block in report.key_blocks:
        if isinstance(block, Table):
            console.print()
            print_table(block, console)
    if report.skipped:
        console.print()
    print_unread(report.skipped, console, most=20 if full else 4)
    for heading, cards in report.claims.items():
        _print_cards(heading, cards, console, full=full)
    if not full:
        console.print("[dim]every table: --full; every plot: the report's files[/dim]", highlight=False)


def _print_cards(heading: str, cards: Sequence[ClaimCard], console: Console, *, full: bool) -> None:
    console.print()
    console.print(f"[bold]{heading}[/bold]", highlight=False)
    for card in cards:
        style = _WORD_STYLES.get(card.word.removesuffix(" by estimate"), "yellow" if card.findings else "dim")
        lines = [f"{escape(card.says)}: [{style}]{card.word}[/{style}]", f"[dim]{escape(card.answer)}[/dim]"]
        lines += [f"[yellow]! {escape(caveat)}[/yellow]" for caveat in card.caveats]
        if full:
            lines.append(f"[dim]source: {escape(card.source)}[/dim]")
        for number, line in enumerate(lines):
            console.print(Padding(line, (0, 0, 0, 2 if number else 0)), highlight=False)


def print_sections(sections: Sequence[Section], console: Console, *, everything: bool = False) -> None:
    """Every section's tables; where they are many and not everything is wanted, the first of each."""
    short = everything or sum(len(section.tables) for section in sections) <= _MOST_TABLES
    for section in sections:
        _print_section(section, console, everything=short)
    if short:
        return
    if folded := [section.title for section in sections if section.folded and section.tables]:
        named = first_of(folded, _MOST_FOLDED, between="; ")
        words = f"Not shown here: {counted(len(folded), 'section')}: {named}."
        console.print(f"[dim]{escape(words)}[/dim]", highlight=False)
    console.print("[dim]Every table: sltt-bench report --full; every plot: its files.[/dim]", highlight=False)


def _print_section(section: Section, console: Console, *, everything: bool) -> None:
    tables = section.tables
    if not everything:  # of a section whose figure answers, the figure in numbers
        tables = [table for table in tables if not table.secondary] or tables[:1]
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
    """One table with its notes, in the first form that fits: nothing is folded inside a word or number.

    As it is; without the columns that are the same in all rows, which become a line; with less room between the
    others, and the words of their headings below each other; turned on its side; as records, one block a row.
    """
    console.print(f"[italic]{escape(table.title)}[/italic]", highlight=False)
    narrow, constant = _without_constant_columns(table)
    forms = (_upright(table), _upright(narrow), _upright(narrow, tight=True), _turned(narrow))
    unbounded = console.options.update(max_width=10_000)
    widths = (Measurement.get(console, unbounded, form).maximum for form in forms)
    fitting = next((form for form, width in zip(forms, widths, strict=False) if width <= console.width), None)
    if fitting is None:
        _print_records(narrow, console)
    else:
        console.print(fitting)
    remarks = [constant] if constant and fitting is not forms[0] else []
    for note in (*remarks, *table.notes):
        console.print(Padding(f"[dim]{escape(note)}[/dim]", (0, 0, 0, 2)), highlight=False)


def _without_constant_columns(table: Table) -> tuple[Table, str]:
    """The table without columns (but the first) whose cells are all equal, and what they say.

    A figure beside which its ratios differ stays: they would stand under no name.
    """
    if len(table.rows) < 2:
        return table, ""
    keep, words = [0], []
    for place in range(1, len(table.headings)):
        texts = {(row[place].text, row[place].detail) for row in table.rows}
        if len(texts) > 1 or _has_ratio(table, place):
            keep.append(place)
            continue
        heading, cell = table.headings[place], table.rows[0][place]
        shown = _with_unit(cell, cell.text, cell.detail, heading.unit)
        words.append(" ".join([heading.text or "verdict", *shown]))
    rows = tuple(tuple(row[place] for place in keep) for row in table.rows)
    narrow = replace(table, headings=tuple(table.headings[place] for place in keep), rows=rows)
    return narrow, f"In all rows: {'; '.join(words)}." if words else ""


def _with_unit(cell: TableCell, text: str, detail: str, unit: str) -> list[str]:
    """A cell's text, its detail and the unit of both, without what is empty: after a spread, but before an interval's count; a
    word instead of a figure has none."""
    shown = unit if any(map(str.isdigit, cell.text)) else ""
    parts = (text, detail, shown) if cell.detail.startswith("±") else (text, shown, detail)
    return [part for part in parts if part]


def _has_ratio(table: Table, place: int) -> bool:
    """Whether the next column sets this one's figures beside the baseline's, and is not the same in all rows."""
    beside = place + 1
    if beside == len(table.headings) or not table.headings[beside].text.startswith(("÷ ", "− ")):
        return False
    return len({(row[beside].text, row[beside].detail) for row in table.rows}) > 1


def _print_records(table: Table, console: Console) -> None:
    first = escape(table.headings[0].text)
    for row in table.rows:
        name = f"[dim]{first}[/dim] [bold]{escape(row[0].text)}[/bold]"
        console.print(f"{name} [dim]{escape(row[0].detail)}[/dim]".rstrip(), highlight=False)
        for heading, cell in zip(table.headings[1:], row[1:], strict=True):
            if not (cell.text or cell.detail):
                continue
            dim = (f"[dim]{escape(text)}[/dim]" if text else "" for text in (cell.detail, heading.unit))
            parts = _with_unit(cell, _markup(replace(cell, detail="")), *dim)
            line = f"{escape(heading.text)}: {' '.join(parts)}"
            console.print(Padding(line, (0, 0, 0, _RECORD_INDENT)), highlight=False)


def _upright(table: Table, *, tight: bool = False) -> RichTable:
    rich = _frame()
    rich.collapse_padding = tight
    for heading in table.headings:
        text = heading.text.replace(" ", "\n") if tight else heading.text
        unit = f"\n[dim]{escape(heading.unit)}[/dim]" if heading.unit else ""
        justify: Literal["left", "right"] = "right" if heading.numeric else "left"
        rich.add_column(escape(text) + unit, justify=justify, no_wrap=True)
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


def _markup(cell: TableCell, between: str = " ") -> str:
    style = _STYLES[cell.tone]
    text = f"[{style}]{escape(cell.text)}[/{style}]" if style else escape(cell.text)
    detail = cell.detail.replace(" n = ", f"{between}n = ")
    return f"{text}{between}[dim]{escape(detail)}[/dim]" if detail else text
