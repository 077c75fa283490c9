"""Numbers as a reader wants them: a common unit for a column, three significant digits, no false ones."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sltt_bench.report.metrics import METRICS, Unit
from sltt_bench.report.statistics import Interval, Stat

DASH = "–"
_STEPS: dict[Unit, tuple[tuple[float, str], ...]] = {
    "bytes": ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "s": ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "per_s": ((1, "1/s"),),
    "J": ((1e6, "MJ"), (1e3, "kJ"), (1, "J")),
    "share": ((0.01, "%"),),
    "accuracy": ((0.01, "%"),),
    "count": ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1, "")),
}


@dataclass(frozen=True)
class Scale:
    """A unit for a set of values: shown = value / factor."""

    factor: float
    unit: str

    def number(self, value: float) -> str:
        """The value without its unit."""
        return significant(value / self.factor)

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.number(value)} {self.unit}".strip()

    def mean(self, stat: Stat) -> tuple[str, str]:
        """("12.4", "± 0.3"): the mean, and the standard deviation to the mean's decimals."""
        mean = self.number(stat.mean)
        if stat.std is None:
            return mean, ""
        decimals = len(mean.partition(".")[2])
        spread = stat.std / self.factor
        return mean, "± " + (f"{spread:.{decimals}f}" if round(spread, decimals) else significant(spread, 1))


def scale_for(unit: Unit, values: Iterable[float]) -> Scale:
    """The unit in which the largest value is at least 1 (minutes only from two on)."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    steps = _STEPS[unit]
    for factor, name in steps:
        if largest >= factor * (2 if name in ("min", "h") else 1):
            return Scale(factor, name)
    return Scale(*steps[-1]) if largest or unit == "count" else Scale(*steps[len(steps) // 2])


def scale_of_metric(name: str, values: Iterable[float]) -> Scale:
    """The scale of a metric; accuracies and shares are always in percent."""
    return scale_for(METRICS[name].unit, values)


def significant(value: float, digits: int = 3) -> str:
    """The value to so many significant digits, whole numbers in full, no exponent in the usual range."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{max(digits - 1 - magnitude, 0)}f}"
    return text if "." in text or magnitude < 4 else f"{value:,.0f}"


def percent(share: float, decimals: int = 2) -> str:
    """0.9444 → "94.44": accuracies have a fixed number of decimals, since a hundredth is quoted."""
    return f"{100 * share:.{decimals}f}"


def ratio(value: float, beside: float | None = None) -> str:
    """0.2345 → "0.23×"; two decimals below 10, since that is what is compared.

    As many more digits as it takes to tell it from `beside`, a limit that it is not equal to.
    """
    return _told_from(_ratio, value, beside)


def _ratio(value: float, more: int) -> str:
    if value >= 10:
        return f"{significant(value, 3 + more)}×"
    return f"{value:.{2 + more}f}×" if value >= 0.1 else f"{significant(value, 2 + more)}×"


def ratio_interval(interval: Interval | None, beside: float | None = None) -> str:
    """ "[0.22, 0.25]", with more digits where the edges, or an edge and a limit, would look the same."""
    return _edges(interval, lambda value, more: _ratio(value, more)[:-1], beside)


def points(value: float, beside: float | None = None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _told_from(_points, value, beside)


def _points(value: float, more: int) -> str:
    text = f"{100 * value:+.{2 + more}f}".replace("-", "−")
    return text.lstrip("+−") if float(text.replace("−", "-")) == 0 else text


def points_interval(interval: Interval | None, beside: float | None = None) -> str:
    """ "[−0.31, +0.12]", with more digits where the edges, or an edge and a limit, would look the same."""
    return _edges(interval, _points, beside)


def value_beside(value: float, scale: Scale, unit: Unit, beside: float | None = None) -> str:
    """A value without its unit, told from `beside`."""
    return _told_from(_writer(scale, unit), value, beside)


def value_interval(interval: Interval | None, scale: Scale, unit: Unit, beside: float | None = None) -> str:
    """An interval of values without their unit."""
    return _edges(interval, _writer(scale, unit), beside)


def _writer(scale: Scale, unit: Unit) -> Callable[[float, int], str]:
    if unit == "accuracy":
        return lambda value, more: percent(value, 2 + more)
    return lambda value, more: significant(value / scale.factor, 3 + more)


_MOST_DIGITS = 4
"""Digits beyond the usual, at most, to keep two numbers apart."""


def _told_from(shown: Callable[[float, int], str], value: float, other: float | None) -> str:
    same = other is None or math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12)
    if same or other is None:
        return shown(value, 0)
    return next(
        (text for more in range(_MOST_DIGITS) if (text := shown(value, more)) != shown(other, more)),
        shown(value, _MOST_DIGITS),
    )


def _edges(interval: Interval | None, shown: Callable[[float, int], str], beside: float | None) -> str:
    """The edges, told from each other and from the limit where they differ; '' for a single pair."""
    if interval is None:
        return ""
    low, high = interval.low, interval.high
    others = [pair for pair in ((low, high), (low, beside), (high, beside)) if None not in pair]
    for more in range(_MOST_DIGITS + 1):
        alike = any(
            shown(a, more) == shown(b, more) and not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
            for a, b in others
            if a is not None and b is not None
        )
        if not alike:
            break
    return f"[{shown(low, more)}, {shown(high, more)}]"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"; of more than four words the first three and how many more."""
    if len(words) > 4:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def seeds(n: int) -> str:
    """ "n = 3 seeds"."""
    return f"n = {n} seed" + "s" * (n != 1)
