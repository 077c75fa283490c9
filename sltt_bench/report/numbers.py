"""Numbers as a reader wants them: a common unit for a column, three significant digits, no false ones."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sltt_bench.report.groups import METRICS, Unit
from sltt_bench.report.statistics import Estimate, Interval, Stat

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


def ratio(value: float) -> str:
    """0.2345 → "0.23×"; two decimals below 10, since that is what is compared."""
    if value >= 10:
        return f"{significant(value)}×"
    return f"{value:.2f}×" if value >= 0.1 else f"{significant(value, 2)}×"


def ratio_interval(interval: Interval | None) -> str:
    """ "[0.22, 0.25]"; nothing for a single seed or where the last digit hides it."""
    return _edges(interval, lambda edge: ratio(edge)[:-1])


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−")


def points_interval(interval: Interval | None) -> str:
    """ "[−0.31, +0.12]"; nothing for a single seed or where the last digit hides it."""
    return _edges(interval, points)


def _edges(interval: Interval | None, shown: Callable[[float], str]) -> str:
    if interval is None or shown(interval.low) == shown(interval.high):
        return ""
    return f"[{shown(interval.low)}, {shown(interval.high)}]"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"; of more than four words the first three and how many more."""
    if len(words) > 4:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def seeds(n: int) -> str:
    """ "n = 3 seeds"."""
    return f"n = {n} seed" + "s" * (n != 1)


def excludes(estimate: Estimate, value: float) -> bool:
    """Whether the estimate is clearly not `value`: the interval excludes it (a single seed never does)."""
    return estimate.interval is not None and not estimate.interval.low <= value <= estimate.interval.high
