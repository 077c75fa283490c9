"""Results as a reader wants them: percentages, ratios, differences and intervals, with no false digits."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from sltt_bench.common.format import Scale, Unit, counted, significant
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.statistics import Interval, Stat

TIMES_OR_BY = "×/÷"
"""Before a geometric standard deviation, as ± stands before an arithmetic one (Limpert et al., BioScience 51, 2001)."""


DEVIATION = "one standard deviation"
DEVIATION_OF_RATIOS = (
    f"{DEVIATION} (for times and memory: geometric mean ÷ and × geometric standard deviation)"
)
"""What bars around means are, in captions; where some of the figures are compared as ratios."""


def mean_and_spread(stat: Stat, scale: Scale) -> tuple[str, str]:
    """("12.4", "± 0.3"): the mean, and the standard deviation to the mean's decimals; of a geometric mean ("12.4", "×/÷ 1.03")."""
    mean = scale.number(stat.mean)
    if stat.geometric_std is not None:
        return mean, "± 0" if stat.geometric_std == 1 else f"{TIMES_OR_BY} {_factor(stat.geometric_std, 1.0)}"
    if stat.std is None:
        return mean, ""
    return mean, spread_beside(mean, stat.std / scale.factor)


def accuracy_and_spread(stat: Stat) -> tuple[str, str]:
    """("94.44", "± 0.16"): the same of an accuracy, in percent."""
    mean = percent(stat.mean)
    if not stat.std:
        return mean, "" if stat.std is None else f"± {percent(0.0)}"
    return mean, spread_beside(mean, 100 * stat.std)


def spread_beside(mean: str, std: float) -> str:
    """ "± 0.3": a standard deviation to the decimals of a mean, or to its first digit where these are all 0."""
    decimals = len(mean.partition(".")[2])
    return "± " + (f"{std:.{decimals}f}" if round(std, decimals) else significant(std, 1))


def percent(share: float, decimals: int = 2) -> str:
    """0.9444 → "94.44": accuracies have a fixed number of decimals, since a hundredth is quoted."""
    return f"{100 * share:.{decimals}f}"


@dataclass(frozen=True)
class Notation:
    """How values of one kind are written, with more digits than usual where unequal ones would look the same."""

    digits: Callable[[float, int], str]
    """Value, digits beyond the usual → text without the unit."""
    unit: str = ""
    """Behind a value; an interval has none."""

    def __call__(self, value: float, beside: float | None = None) -> str:
        """The value, told from a limit that it is not equal to."""
        return self.digits(value, self._more_digits([(value, beside)])) + self.unit

    def interval(self, interval: Interval | None, beside: float | None = None) -> str:
        """ "[0.22, 0.25]", the edges told from each other and from a limit; '' for a single pair."""
        if interval is None:
            return ""
        low, high = interval.low, interval.high
        more = self._more_digits([(low, high), (low, beside), (high, beside)])
        return f"[{self.digits(low, more)}, {self.digits(high, more)}]"

    def _more_digits(self, pairs: Sequence[tuple[float, float | None]]) -> int:
        known = [(a, b) for a, b in pairs if b is not None]
        different = [(a, b) for a, b in known if not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)]
        for more in range(_MOST_DIGITS):
            if all(self.digits(a, more) != self.digits(b, more) for a, b in different):
                return more
        return _MOST_DIGITS


_MOST_DIGITS = 4
"""Digits beyond the usual, at most, to keep two numbers apart."""


def _ratio(value: float, more: int) -> str:
    """Two decimals from 0.1 to 10, since that is what is compared."""
    if 0.1 <= value < 10:
        return f"{value:.{2 + more}f}"
    return significant(value, (3 if value >= 10 else 2) + more)


def _points(value: float, more: int) -> str:
    text = f"{100 * value:+.{2 + more}f}".replace("-", "−")
    return text.lstrip("+−") if float(text.replace("−", "-")) == 0 else text


_factor = Notation(_ratio)
fraction = Notation(lambda value, more: f"{value:.{3 + more}f}")
"""0.98765 → "0.988": a cosine, or a share that is not in percent."""
ratio = Notation(_ratio, "×")
"""0.2345 → "0.23×"."""
points = Notation(_points)
"""A difference of shares in percentage points, with its sign: 0.0123 → "+1.23"."""


def compared(metric: str) -> Notation:
    """A figure beside a baseline's: a ratio, or of accuracies a difference."""
    return ratio if METRICS[metric].as_ratio else points


def in_scale(scale: Scale, unit: Unit) -> Notation:
    """Values in the unit of a scale."""
    behind = f" {scale.unit}" if scale.unit else ""
    if unit == "accuracy":
        return Notation(lambda value, more: percent(value, 2 + more), behind)
    return Notation(lambda value, more: significant(value / scale.factor, 3 + more), behind)


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"; of more than four words the first three and how many more."""
    if len(words) > 4:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def first_of(words: Sequence[str], most: int = 12, between: str = ", ") -> str:
    """ "a, b, c": of more than `most` the first, and how many more."""
    return between.join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def seeds(counts: Collection[int]) -> str:
    """ "n = 3 seeds", "n = 1 to 3 seeds"."""
    fewest, most = min(counts), max(counts)
    return f"n = {f'{fewest} to ' * (most > fewest)}{counted(most, 'seed')}"


def of_single_seeds(counts: Iterable[int]) -> str:
    """ "n = 1 seed", for the label of an axis of which some points are single measurements, around which nothing is drawn;
    else ''."""
    known = {*counts}
    return seeds(known) if 1 in known else ""


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
