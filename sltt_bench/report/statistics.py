"""The report's arithmetic: mean and spread over seeds, and paired t intervals.

Ratios of times, rates, energy and memory are compared as logarithms, so that their mean is the geometric
one and an interval never reaches below 0; differences of accuracy as they are. Student's t is exact for
normal differences at any n ≥ 2 (Student, Biometrika 6, 1908); a bootstrap of three pairs covers 69 % where
it promises 95.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pair = TypeVar("Pair", bound=Hashable)
"""What tells pairs apart: a seed, or a run and a seed."""

CONFIDENCE = 0.95
ROUNDING = 1e-12
"""By so much a figure may miss what it is set against: in binary numbers 0.81 − 0.80 is not 0.01."""
COLOURED_FROM = 5
"""Pairs from which on an interval is trusted with a colour and the words better and worse."""


@dataclass(frozen=True)
class Stat:
    """Mean over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n − 1); None for a single seed, and around a geometric mean."""
    n: int
    geometric_std: float | None = None
    """Of a geometric mean of several seeds: the factor exp(s), with s the standard deviation (n − 1) of the logarithms
    (Kirkwood, Biometrics 35, 1979)."""

    @property
    def spread(self) -> tuple[float, float] | None:
        """One standard deviation to both sides: mean ± std, or mean ÷ and × the geometric one; None for a single seed."""
        if self.geometric_std is not None:
            return self.mean / self.geometric_std, self.mean * self.geometric_std
        return None if self.std is None else (self.mean - self.std, self.mean + self.std)


@dataclass(frozen=True)
class Interval:
    """A t interval at the confidence CONFIDENCE."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedEstimate:
    """A comparison of two methods over pairs of cells, or one method's mean over its seeds."""

    value: float
    interval: Interval | None
    """None for a single pair, which says nothing about the spread, and for an exact figure."""
    n: int
    """Pairs."""
    exact: bool = False
    """Whether the figure is counted, so that the value alone decides at any n."""

    @property
    def certain(self) -> bool:
        """Whether it may be called better or worse, or be given a colour, if its interval excludes a value."""
        return self.exact or self.n >= COLOURED_FROM

    def excludes(self, value: float) -> bool:
        """Whether it is clearly not `value`."""
        if self.exact:
            return not math.isclose(self.value, value, rel_tol=1e-12, abs_tol=1e-15)
        edges = self.interval
        return edges is not None and not edges.low - ROUNDING <= value <= edges.high + ROUNDING


def stat(values: Sequence[float], *, geometric: bool = False) -> Stat:
    """Mean, standard deviation and count of at least one value; of positive ones the geometric mean and deviation if asked."""
    array = np.sort(np.asarray(values, dtype=float))
    n, equal = len(array), array[0] == array[-1]  # equal values have no spread: not even that of rounding
    if n == 1:
        return Stat(float(array[0]), None, 1)
    if geometric and array[0] > 0:
        logs = np.log(array)
        mean = array[0] if equal else np.exp(logs.mean())
        return Stat(float(mean), None, n, 1.0 if equal else float(np.exp(logs.std(ddof=1))))
    return Stat(float(array[0] if equal else array.mean()), 0.0 if equal else float(array.std(ddof=1)), n)


def paired_ratio(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], *, exact: bool = False
) -> PairedEstimate | None:
    """Geometric mean of values ÷ baseline over common pairs; None without one, or if some value is ≤ 0.

    An exact figure whose ratio is the same in all pairs has no interval and needs none.
    """
    common = sorted(set(values) & set(baseline), key=repr)
    ratios = np.array([values[pair] / baseline[pair] if baseline[pair] else 0.0 for pair in common])
    if not common or ratios.min() <= 0:
        return None
    if exact and math.isclose(ratios.min(), ratios.max(), rel_tol=1e-12):
        return PairedEstimate(float(ratios[0]), None, len(common), exact=True)
    return mean_with_interval(ratios, geometric=True)


def paired_difference(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], *, resolution: float = 0.0
) -> PairedEstimate | None:
    """Mean of values − baseline over common pairs; None without one.

    `resolution` is the smallest difference that can be seen (one test sample): no interval is narrower.
    """
    common = sorted(set(values) & set(baseline), key=repr)
    if not common:
        return None
    return t_estimate(np.array([values[pair] - baseline[pair] for pair in common]), resolution)


def mean_with_interval(
    values: Iterable[float],
    *,
    geometric: bool = False,
    resolution: float = 0.0,
    exact: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> PairedEstimate:
    """The mean of at least one value, with its interval; of positive ones the geometric mean if asked.

    `bounds`: between which the figure must lie, whatever the spread.
    """
    array = np.array(list(values))
    if exact and array.min() == array.max():
        return PairedEstimate(float(array[0]), None, len(array), exact=True)
    if not geometric or array.min() <= 0:
        estimate = t_estimate(array, resolution)
        edges = estimate.interval
        kept = edges and Interval(max(edges.low, bounds[0]), min(edges.high, bounds[1]))
        return replace(estimate, interval=kept)
    logs = t_estimate(np.log(array))
    interval = logs.interval and Interval(_exp(logs.interval.low), _exp(logs.interval.high))
    return PairedEstimate(_exp(logs.value), interval, logs.n)


def _exp(logarithm: float) -> float:
    """No figure lies beyond 10^±100; far beyond it, a float would overflow."""
    return math.exp(max(-230.0, min(logarithm, 230.0)))


def t_estimate(sample: Floats, resolution: float = 0.0) -> PairedEstimate:
    """Mean of a sample with its t interval: mean ± t(n − 1) · s/√n, and no less than ± `resolution`."""
    n = len(sample)
    mean = float(sample[0]) if sample.min() == sample.max() else float(sample.mean())
    if n == 1:
        return PairedEstimate(mean, None, 1)
    deviation = 0.0 if sample.min() == sample.max() else float(sample.std(ddof=1))
    half = max(_quantile(n - 1) * deviation / math.sqrt(n), resolution)
    return PairedEstimate(mean, Interval(mean - half, mean + half), n)


@cache
def _quantile(freedom: int) -> float:
    """Of Student's t, for a two-sided interval. scipy is loaded only where there is a spread."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Slope:
    """A least-squares line through figures of rising T."""

    per_step: float
    """What one time step more adds."""
    at_zero: float
    first: float
    last: float
    """The T between which it was fitted."""
    flat: bool
    """Whether a step adds less than a thousandth of the largest figure."""

    def at(self, timesteps: float) -> float:
        """The line's value."""
        return self.at_zero + self.per_step * timesteps


def slope_of(points: Sequence[tuple[float, float]]) -> Slope | None:
    """The line through (T, figure) from T = 2 on, where SLTT has reached its plateau; None for fewer than two points.

    A figure that is NaN, of a T that was not looked at, is no point.
    """
    fitted = [(x, y) for x, y in points if x >= 2 and not math.isnan(y)]
    if len(fitted) < 2:
        return None
    xs, ys = zip(*fitted, strict=True)
    # Nine digits: what was counted in whole bytes shall not come out a rounding error below a unit.
    per_step, at_zero = (float(f"{number:.9g}") for number in np.polyfit(xs, ys, 1))
    return Slope(per_step, at_zero, min(xs), max(xs), abs(per_step) < 1e-3 * max(abs(y) for y in ys))


def pareto_front(points: Mapping[str, Sequence[float]], ties: Sequence[float] = ()) -> set[str]:
    """The names that no other of the points dominates: at least as good in all coordinates and better in one.

    Every coordinate counts as better when smaller; values that differ by no more than the coordinate's
    entry of `ties` are equal. Equal points are all on the front.
    """
    values, margins = np.array(list(points.values()), dtype=float), np.array(ties or 0.0)
    differences = values[:, np.newaxis] - values  # [a point, one that it may dominate, coordinate]
    dominates = (differences <= margins).all(axis=2) & (differences < -margins).any(axis=2)
    dominated = dominates.any(axis=0)
    return {name for name, is_dominated in zip(points, dominated, strict=True) if not is_dominated}
