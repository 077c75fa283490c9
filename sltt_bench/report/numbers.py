"""Results as a reader wants them: percentages, ratios, differences and intervals, with no false digits."""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from sltt_bench.format import Scale, Unit, scale_for, significant
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.statistics import Interval, Stat


def mean_and_spread(stat: Stat, scale: Scale) -> tuple[str, str]:
    """("12.4", "± 0.3"): the mean, and the standard deviation to the mean's decimals."""
    mean = scale.number(stat.mean)
    if stat.std is None:
        return mean, ""
    decimals = len(mean.partition(".")[2])
    spread = stat.std / scale.factor
    return mean, "± " + (f"{spread:.{decimals}f}" if round(spread, decimals) else significant(spread, 1))


def scale_of_metric(name: str, values: Iterable[float]) -> Scale:
    """The scale of a metric; accuracies and shares are always in percent."""
    return scale_for(METRICS[name].unit, values)


def percent(share: float, decimals: int = 2) -> str:
    """0.9444 → "94.44": accuracies have a fixed number of decimals, since a hundredth is quoted."""
    return f"{100 * share:.{decimals}f}"


def ratio(value: float, beside: float | None = None) -> str:
    """0.2345 → "0.23×"; two decimals below 10, since that is what is compared.

    As many more digits as it takes to tell it from `beside`, a limit that it is not equal to.
    """
    return _apart_from(_ratio, value, beside)


def _ratio(value: float, more: int) -> str:
    if value >= 10:
        return f"{significant(value, 3 + more)}×"
    return f"{value:.{2 + more}f}×" if value >= 0.1 else f"{significant(value, 2 + more)}×"


def ratio_interval(interval: Interval | None, beside: float | None = None) -> str:
    """ "[0.22, 0.25]", with more digits where the edges, or an edge and a limit, would look the same."""
    return _edges(interval, lambda value, more: _ratio(value, more)[:-1], beside)


def points(value: float, beside: float | None = None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _apart_from(_points, value, beside)


def _points(value: float, more: int) -> str:
    text = f"{100 * value:+.{2 + more}f}".replace("-", "−")
    return text.lstrip("+−") if float(text.replace("−", "-")) == 0 else text


def points_interval(interval: Interval | None, beside: float | None = None) -> str:
    """ "[−0.31, +0.12]", with more digits where the edges, or an edge and a limit, would look the same."""
    return _edges(interval, _points, beside)


def value_beside(value: float, scale: Scale, unit: Unit, beside: float | None = None) -> str:
    """A value without its unit, told from `beside`."""
    return _apart_from(_writer(scale, unit), value, beside)


def value_interval(interval: Interval | None, scale: Scale, unit: Unit, beside: float | None = None) -> str:
    """An interval of values without their unit."""
    return _edges(interval, _writer(scale, unit), beside)


def _writer(scale: Scale, unit: Unit) -> Callable[[float, int], str]:
    if unit == "accuracy":
        return lambda value, more: percent(value, 2 + more)
    return lambda value, more: significant(value / scale.factor, 3 + more)


_MOST_DIGITS = 4
"""Digits beyond the usual, at most, to keep two numbers apart."""


def _more_digits(shown: Callable[[float, int], str], pairs: Sequence[tuple[float, float | None]]) -> int:
    """How many digits beyond the usual it takes to keep those numbers of each pair apart that are not equal."""
    different = [
        (a, b) for a, b in pairs if b is not None and not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    ]
    enough = (
        more for more in range(_MOST_DIGITS) if all(shown(a, more) != shown(b, more) for a, b in different)
    )
    return next(enough, _MOST_DIGITS)


def _apart_from(shown: Callable[[float, int], str], value: float, other: float | None) -> str:
    return shown(value, _more_digits(shown, [(value, other)]))


def _edges(interval: Interval | None, shown: Callable[[float, int], str], beside: float | None) -> str:
    """The edges, told from each other and from the limit where they differ; '' for a single pair."""
    if interval is None:
        return ""
    low, high = interval.low, interval.high
    more = _more_digits(shown, [(low, high), (low, beside), (high, beside)])
    return f"[{shown(low, more)}, {shown(high, more)}]"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"; of more than four words the first three and how many more."""
    if len(words) > 4:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def first_of(words: Sequence[str], most: int = 12) -> str:
    """ "a, b, c": of more than `most` the first, and how many more."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def seeds(n: int) -> str:
    """ "n = 3 seeds"."""
    return f"n = {n} seed" + "s" * (n != 1)


_NAME = re.compile(r"[\w-]+(?:\.\w+)*")
_MANY = 3


def shared_notes(notes: Iterable[str], methods: Sequence[str]) -> list[str]:
    """Notes that say the same of several of a group's methods, each naming the first method in it, as one."""
    of: dict[tuple[str, str], list[str]] = {}
    for note in dict.fromkeys(notes):
        name = next((word for word in _NAME.findall(note) if word in methods), "")
        before, _, after = note.partition(name) if name else (note, "", "")
        of.setdefault((before, after), []).append(name)
    return [
        before + ("all methods" if len(names) == len(methods) > _MANY else ", ".join(names)) + after
        for (before, after), names in of.items()
    ]
