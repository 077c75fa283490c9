"""Cells and columns that tables of several sections share."""

from collections.abc import Callable

from sltt_bench.common.format import DASH
from sltt_bench.report import numbers
from sltt_bench.report.document import Column, Heading, Row, TableCell

EMPTY = TableCell(DASH, tone="muted")


def plain_cell(value: str | int) -> TableCell:
    """A word or a count, by which its column sorts."""
    return TableCell(str(value), value=value)


def percent_cell(share: float | None, decimals: int = 2) -> TableCell:
    """A share in percent, without the sign."""
    return EMPTY if share is None else TableCell(numbers.percent(share, decimals), value=share)


def word_column(heading: str, word: Callable[[Row], str]) -> Column[Row]:
    """A column of words."""
    return Heading(heading, numeric=False), lambda row: plain_cell(word(row))
