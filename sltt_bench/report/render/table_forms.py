"""The form in which a page shows a table: as it is, with details below figures, turned on its side, or on paper as records.

A window scrolls and a sheet does not: what is wider than a sheet is cut off in print, or shrinks all of the page with it.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from sltt_bench.report.document import Heading, Table, TableCell

SHEET = 100.0
"""What fits side by side on A4, in digits of a table's type in print (report.css)."""
_WIDTHS = dict.fromkeys(" .,:;[]()'|!/ijlrtf", 0.55) | dict.fromkeys("MWmw×%±", 1.35)
"""Of characters that are narrower or wider than a digit."""
_SMALL, _BOLD = 0.94, 1.1
"""Widths of a detail's or heading's character, and of a row's name or verdict, in those of the rest."""
_GAP = 0.8
_BEFORE_DETAIL = 1.4
_SWATCH = 2.0
_LONG = 30
"""Words of more characters than this are folded..."""
_FOLDED = 18.0
"""...to this width at least: `.text` in report.css."""


@dataclass(frozen=True)
class PageTable:
    """A table in the form that a page shows."""

    table: Table
    stacked: bool
    """Whether details stand below their figures."""
    records: bool = False
    """Whether on paper each row is a block, in which every figure stands below its heading."""

    @property
    def width(self) -> float:
        """What it takes side by side, in digits."""
        numeric = [heading.numeric for heading in self.table.headings]
        words_after_figures = sum(one and not other for one, other in pairwise(numeric))
        columns = sum(self._column_width(place) + _GAP for place in range(len(numeric)))
        return columns + words_after_figures * _GAP

    def _column_width(self, place: int) -> float:
        """Headings are folded between words, a figure is not."""
        heading = self.table.headings[place]
        words = [*heading.text.split(), f"[{heading.unit}]" if heading.unit else ""]
        widths = [max(map(_length, words), default=0.0) * _SMALL]
        for row in self.table.rows:
            cell = row[place]
            text, detail = _length(cell.text), _length(cell.detail) * _SMALL
            if cell.tone in ("good", "bad"):
                text *= _BOLD
            if is_long(cell, heading):
                widths.append(_FOLDED)
            elif self.stacked:
                widths.append(max(text, detail))
            else:
                widths.append(text + _BEFORE_DETAIL * bool(detail) + detail)
        if place == 0:
            return max(widths) * _BOLD + (_SWATCH if heading.text == "method" else 0.0)
        return max(widths)


def page_form(table: Table) -> PageTable:
    """The first form that fits a sheet: as it is, stacked, turned, and where none does records of the narrowest."""
    forms = [PageTable(table, stacked=not table.secondary), PageTable(table, stacked=True)]
    if all(heading.numeric for heading in table.headings[1:]):
        forms.append(PageTable(turned(table), stacked=True))
    fitting = (form for form in forms if form.width <= SHEET)
    return next(fitting, None) or replace(min(forms, key=lambda form: form.width), records=True)


def turned(table: Table) -> Table:
    """A row for each heading but the first, and a column for each row."""
    corner = Heading(table.across or table.headings[0].text, numeric=False)
    headings = (corner, *(Heading(row[0].text, row[0].detail) for row in table.rows))
    rows = tuple(
        (
            TableCell(heading.text, f"[{heading.unit}]" if heading.unit else "", heading.text),
            *(row[place] for row in table.rows),
        )
        for place, heading in enumerate(table.headings[1:], start=1)
    )
    return replace(table, headings=headings, rows=rows)


def is_long(cell: TableCell, heading: Heading) -> bool:
    """Whether a cell of words is folded."""
    return not heading.numeric and len(cell.text) + len(cell.detail) > _LONG


def _length(text: str) -> float:
    return sum(_WIDTHS.get(letter, 1.0) for letter in text)
