"""Formats numbers with units, scales and significant digits, in the same way wherever one is shown."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DASH = "–"
"""Stands for a number that is missing."""

Unit = Literal["bytes", "s", "per_s", "J", "pJ", "share", "accuracy", "count"]

_STEPS: dict[Unit, tuple[tuple[float, str], ...]] = {
    "bytes": ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "s": ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "per_s": ((1, "1/s"),),
    "J": ((1e6, "MJ"), (1e3, "kJ"), (1, "J")),
    "pJ": ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1, "pJ")),
    "share": ((0.01, "%"),),
    "accuracy": ((0.01, "%"),),
    "count": ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1, "")),
}
"""(factor, unit) from the largest to the smallest."""


@dataclass(frozen=True)
class Scale:
    """A unit for a set of values: shown number = value / factor."""

    factor: float
    unit: str

    def number(self, value: float) -> str:
        """Returns the value in this unit, without the unit."""
        return significant(value / self.factor)

    def text(self, value: float) -> str:
        """Returns the value with the unit."""
        return f"{self.number(value)} {self.unit}".strip()


def scale_for(unit: Unit, values: Iterable[float]) -> Scale:
    """Returns the largest unit in which the largest value is at least 1 (minutes and hours: at least 2)."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    steps = _STEPS[unit]
    for factor, name in steps:
        if largest >= factor * (2 if name in ("min", "h") else 1):
            return Scale(factor, name)
    return Scale(*steps[-1]) if largest or unit == "count" else Scale(*steps[len(steps) // 2])


def significant(value: float, digits: int = 3) -> str:
    """Returns the value with `digits` significant digits; whole numbers in full, exponent only below 1e-4."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{max(digits - 1 - magnitude, 0)}f}"
    return text if "." in text or magnitude < 4 else f"{value:,.0f}"


def format_bytes(count: float | None) -> str:
    """ "3.27 GiB": binary units."""
    return "0 B" if count == 0 else _brief("bytes", count)


def format_seconds(seconds: float | None) -> str:
    """ "93.4 s", or from two minutes or hours on "2.5 h"."""
    return _brief("s", seconds)


def counted(count: float | str, noun: str) -> str:
    """ "1 cell", "2 cells", "2 classes"; a count may be text already, "0.28"."""
    text = f"{count:g}" if isinstance(count, float) else str(count)
    ending = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{text} {noun}" + ending * (text != "1")


def format_percent(share: float | None, decimals: int = 2) -> str:
    """0.9444 → "94.44 %"."""
    return DASH if share is None else f"{100 * share:.{decimals}f} %"


def _brief(unit: Unit, value: float | None) -> str:
    """Returns a value in its own unit and without trailing zeros, since it is not in a column."""
    if value is None:
        return DASH
    scale = scale_for(unit, [value])
    number = scale.number(value)
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {scale.unit}"


def parse_bytes(text: str) -> int:
    """ "24GiB" → bytes. Raises ValueError, with the remedy, unless it is a positive amount with a unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is no amount of memory; write a number with a unit, e.g. 24GiB or 80GB")
    number, unit = float(match[1]), match[2]
    base = 1024 if "i" in unit else 1000
    return int(number * base ** " KMGT".index(unit[0] if unit != "B" else " "))
