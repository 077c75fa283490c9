"""Numbers as text: bytes, seconds, counts and percentages to three digits, the same wherever they are shown."""

import re
from collections.abc import Sequence

DASH = "–"
"""Stands for a number that is missing."""

Steps = Sequence[tuple[float, str]]
"""(factor, unit) from the largest to the smallest."""

BYTE_STEPS: Steps = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
SECOND_STEPS: Steps = ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
COUNT_STEPS: Steps = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def format_bytes(count: float | None) -> str:
    """ "3.27 GiB": binary units."""
    return DASH if count is None else _with_unit(count, BYTE_STEPS, 1024)


def format_seconds(seconds: float | None) -> str:
    """ "93.4 s"; minutes and hours only from two on, as "2.5 h"."""
    if seconds is None:
        return DASH
    for factor, unit in SECOND_STEPS:
        if abs(seconds) >= factor * (2 if unit in ("h", "min") else 1):
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def format_count(count: float | None) -> str:
    """ "1.2 G": decimal prefixes; whole numbers below a thousand as they are."""
    return DASH if count is None else _with_unit(count, COUNT_STEPS, 999.5).strip()


def format_percent(share: float | None, decimals: int = 2) -> str:
    """0.9444 → "94.44 %"."""
    return DASH if share is None else f"{100 * share:.{decimals}f} %"


def parse_bytes(text: str) -> int:
    """ "24GiB" → bytes. Raises ValueError, with the remedy, for what is no positive amount with a unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is no amount of memory; write a number with a unit, e.g. 24GiB or 80GB")
    number, unit = float(match[1]), match[2]
    base = 1024 if "i" in unit else 1000
    return int(number * base ** " KMGT".index(unit[0] if unit != "B" else " "))


def _with_unit(value: float, steps: Steps, limit: float) -> str:
    """In the first unit, from the smallest on, in which the value stays below `limit`."""
    for factor, unit in reversed(steps):
        if abs(value) / factor < limit or (factor, unit) == tuple(steps[0]):
            return f"{_three_digits(value / factor)} {unit}"
    raise AssertionError("the largest unit takes every value")


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent: whole numbers from 1000 on keep all of theirs."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
