"""The report as Markdown: tables ready for a paper's repository or an issue."""

import re
from collections.abc import Mapping, Sequence

from sltt_bench.report.document import (
    Block,
    ClaimCard,
    Figure,
    Origin,
    Report,
    Section,
    Table,
    TableCell,
    Verdict,
)

_LINE_ENDS = re.compile(r"\s*[\r\n]\s*")


def render(report: Report, figure_files: Mapping[str, str]) -> str:
    """The whole report. `figure_files` has the path of each figure (by name), relative to the page."""
    parts = [f"# {_escape(report.title)}", " ".join(_escape(sentence) for sentence in report.sentences)]
    for heading, cards in report.claims.items():
        parts += [f"## {heading}", "\n".join(_card(card) for card in cards)]
    parts += [_block(block, figure_files) for block in report.key_blocks]
    if report.verdicts:
        parts += ["## Verdicts", verdict_table(report.verdicts)]
    for section in report.sections:
        parts += _section(section, figure_files)
    parts += ["## Commands and provenance", *(_made_with(made) for made in report.provenance)]
    if report.skipped:
        rows = [(_code(path, in_table=True), _escape(reason)) for path, reason in report.skipped]
        parts += ["## Not read", _pipes(("path", "reason"), rows, ("---", "---"))]
    parts.append(f"Made by {report.made_by}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(block: Table) -> str:
    """One table with its notes."""
    headings = [f"{h.text} [{h.unit}]" if h.unit else h.text for h in block.headings]
    rows = [[_cell(cell) for cell in row] for row in block.rows]
    marks = ["---:" if heading.numeric else "---" for heading in block.headings]
    notes = "".join(f"\n{_escape(note)}  " for note in block.notes)
    return _pipes([_escape(heading) for heading in headings], rows, marks) + ("\n" + notes if notes else "")


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The claims with what became of them."""
    rows = []
    for verdict in verdicts:
        word = f"**{verdict.word}**" + (" (estimated)" if verdict.estimated else "")
        evidence = f"{verdict.measured} ({verdict.basis})" if verdict.measured else ""
        parts = (evidence, verdict.beside, verdict.reason, *verdict.caveats)
        evidence = "; ".join(filter(None, parts))
        command = f" {_code(verdict.command, in_table=True)}" if verdict.command else ""
        rows.append(
            [
                word,
                _escape(verdict.recipe),
                _escape(verdict.statement),
                _escape(evidence) + command,
                _escape(", ".join(verdict.conditions)),
                _escape(str(verdict.claim.get("source", ""))),
            ]
        )
    headings = ("verdict", "recipe", "claim", "measured", "on", "source")
    return _pipes(headings, rows, ["---"] * len(headings))


def _card(card: ClaimCard) -> str:
    caveats = "".join(f" **!** {_escape(caveat)}." for caveat in card.caveats)
    return f"- {_escape(card.says)}: **{card.word}**. {_escape(card.answer)}.{caveats}"


def _section(section: Section, figure_files: Mapping[str, str]) -> list[str]:
    parts = [f"{'#' * (section.level + 1)} {_escape(section.title)}"]
    if section.chips:
        parts.append("*" + _escape(" · ".join(section.chips)) + "*")
    parts += [_escape(sentence) for sentence in section.lead]
    return parts + [_block(block, figure_files) for block in section.blocks]


def _block(block: Block, figure_files: Mapping[str, str]) -> str:
    if isinstance(block, Table):
        return f"**{_escape(block.title)}**\n\n{table(block)}"
    if isinstance(block, Figure):
        if block.name not in figure_files:
            return ""
        picture = f"![{_escape(block.title)}]({figure_files[block.name]})\n\n"
        return f"{picture}*{_escape(block.title)}.* {_escape(block.caption)}"
    return f"- **{_escape(block.title)}**: {_escape(block.reason)}. {_code(block.command)}"


def _made_with(origin: Origin) -> str:
    facts = [f"- {name}: {_code(value)}" for name, value in origin.facts.items()]
    commands = [f"- {_code(command)} → {_escape(runs)}" for command, runs in origin.commands]
    return "\n".join([*facts, *commands])


def _cell(cell: TableCell) -> str:
    return _escape(f"{cell.text} {cell.detail}".strip())


def _pipes(headings: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str]) -> str:
    lines = [headings, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_MARKS = re.compile(r"[\\|*_<>`~$]|&(?=#?\w+;)|\](?=\()|^[#+-](?=\s)|(?<=^\d)[.)](?=\s)")
"""Table bars, emphasis, tags, code, strikes, formulas, entities, links, and what makes a heading or an item of a line."""


def _escape(text: str) -> str:
    """The text so that Markdown shows it as it is written, on one line."""
    return _MARKS.sub(r"\\\g<0>", _LINE_ENDS.sub(" ", text))


def _code(text: str, *, in_table: bool = False) -> str:
    """The text as code: between more backticks than it has; a bar parts the cells of a table even there."""
    text = _LINE_ENDS.sub(" ", text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " * ("`" in (text[:1], text[-1:]))
    return fence + room + (text.replace("|", "\\|") if in_table else text) + room + fence
