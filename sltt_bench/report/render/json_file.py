"""The report as one JSON document: every sentence, verdict, table and caption, numbers in base units."""

import json
from typing import Any

from sltt_bench.report.document import ClaimCard, Figure, MissingFigure, Report, Section, Table, Verdict

FORMAT_VERSION = 1


def render(report: Report) -> str:
    """report.json. A value is in base units (bytes, seconds, shares) or a name; null: not a number, or missing."""
    return json.dumps(_report(report), indent=1, allow_nan=False) + "\n"


def _report(report: Report) -> dict[str, Any]:
    first = Section("first-screen", report.title, report.key_blocks)
    return {
        "format_version": FORMAT_VERSION,
        "made_by": report.made_by,
        "title": report.title,
        "baseline": report.baseline,
        "sentences": list(report.sentences),
        "claims": [_card(card) for cards in report.claims.values() for card in cards],
        "sections": [_section(section) for section in (first, *report.sections)],
        "provenance": [
            {
                "facts": dict(origin.facts),
                "commands": [{"command": command, "runs": runs} for command, runs in origin.commands],
            }
            for origin in report.provenance
        ],
        "not_read": [{"path": path, "reason": reason} for path, reason in report.skipped],
    }


def _card(card: ClaimCard) -> dict[str, Any]:
    return {
        "says": card.says,
        "source": card.source,
        "of_paper": card.of_paper,
        "verdict": card.word,
        "answer": card.answer,
        "verdicts": [_verdict(verdict) for verdict in card.verdicts],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    names = (
        "recipe", "word", "statement", "measured", "value", "low", "high", "limit", "at_most", "n", "exact", "figure",
        "reason", "beside", "command", "estimated",
    )  # fmt: skip
    return {
        **{name: getattr(verdict, name) for name in names},
        "conditions": list(verdict.conditions),
        "caveats": list(verdict.caveats),
        "claim": dict(verdict.claim),
    }


def _section(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "title": section.title,
        "conditions": list(section.chips),
        "lead": list(section.lead),
        "tables": [_table(block) for block in section.blocks if isinstance(block, Table)],
        "figures": [
            {"name": block.name, "title": block.title, "caption": block.caption}
            for block in section.blocks
            if isinstance(block, Figure)
        ],
        "missing": [
            {"title": block.title, "reason": block.reason, "command": block.command}
            for block in section.blocks
            if isinstance(block, MissingFigure)
        ],
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "columns": [{"heading": heading.text, "unit": heading.unit} for heading in table.headings],
        "rows": [
            [{"text": cell.text, "detail": cell.detail, "value": cell.value} for cell in row]
            for row in table.rows
        ],
        "notes": list(table.notes),
    }
