"""The report as one JSON document: every sentence, verdict, table and caption, numbers in base units."""

import json
from typing import Any

from sltt_bench.report.document import ClaimCard, Figure, MissingFigure, Report, Section, Table

FORMAT_VERSION = 1


def render(report: Report) -> str:
    """report.json. A value is in base units (bytes, seconds, shares) or a name; null: not a number, or missing."""
    return json.dumps(_report(report), indent=1, allow_nan=False) + "\n"


def _report(report: Report) -> dict[str, Any]:
    first = Section("first-screen", report.title, report.key_blocks)
    return {
        "format_version": FORMAT_VERSION,
        **_named(report, "made_by", "title", "baseline", "sentences"),
        "claims": [_card(card) for cards in report.claims.values() for card in cards],
        "sections": [_section(section) for section in (first, *report.sections)],
        "provenance": [
            {
                "facts": origin.facts,
                "commands": [{"command": command, "runs": runs} for command, runs in origin.commands],
            }
            for origin in report.provenance
        ],
        "not_read": [_named(skipped, "path", "reason") for skipped in report.skipped],
    }


def _named(thing: object, *names: str) -> dict[str, Any]:
    """What stands in the document under the name that the report has for it."""
    return {name: getattr(thing, name) for name in names}


def _card(card: ClaimCard) -> dict[str, Any]:
    return {
        **_named(card, "says", "source", "of_paper"),
        "verdict": card.word,
        "answer": card.answer,
        "verdicts": [_named(verdict, *_OF_VERDICT) for verdict in card.verdicts],
    }


_OF_VERDICT = (
    "recipe", "word", "statement", "measured", "value", "low", "high", "limit", "at_most", "n", "exact", "figure",
    "reason", "beside", "command", "estimated", "conditions", "caveats", "claim",
)  # fmt: skip


def _section(section: Section) -> dict[str, Any]:
    figures = [block for block in section.blocks if isinstance(block, Figure)]
    missing = [block for block in section.blocks if isinstance(block, MissingFigure)]
    return {
        **_named(section, "name", "title"),
        "conditions": section.chips,
        "lead": section.lead,
        "tables": [_table(table) for table in section.tables],
        "figures": [_named(block, "name", "title", "caption") for block in figures],
        "missing": [_named(block, "title", "reason", "command") for block in missing],
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        **_named(table, "name", "title"),
        "columns": [{"heading": heading.text, "unit": heading.unit} for heading in table.headings],
        "rows": [[_named(cell, "text", "detail", "value") for cell in row] for row in table.rows],
        "notes": table.notes,
    }
