"""The report's arithmetic: mean and spread over seeds, and bootstrap intervals over paired seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_EXACT_UP_TO = 5
_DRAWS = 10_000


@dataclass(frozen=True)
class Stat:
    """Mean over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n − 1); None for a single seed."""
    n: int


@dataclass(frozen=True)
class Interval:
    """A bootstrap percentile interval at the confidence CONFIDENCE."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A comparison of two methods over the seeds that both have finished."""

    value: float
    interval: Interval | None
    """None for a single seed: one pair says nothing about the spread."""
    n: int
    """Paired seeds."""


def stat(values: Sequence[float]) -> Stat:
    """Mean, standard deviation and count of at least one value."""
    array = np.sort(np.asarray(values, dtype=float))
    if array[0] == array[-1]:  # equal values have no spread: not even that of rounding
        return Stat(float(array[0]), 0.0 if len(array) > 1 else None, len(array))
    return Stat(float(array.mean()), float(array.std(ddof=1)), len(array))


def paired_ratio(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """mean(values) ÷ mean(baseline) over the seeds of both; None without a common seed."""
    return _paired(values, baseline, lambda a, b: a / b)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """mean(values) − mean(baseline) over the seeds of both; None without a common seed."""
    return _paired(values, baseline, lambda a, b: a - b)


def mean_with_interval(values: Mapping[int, float]) -> Estimate:
    """The mean over seeds of at least one value, with its interval."""
    array = np.array([values[seed] for seed in sorted(values)])
    return Estimate(float(array.mean()), _interval(_resampled_means(array)), len(array))


def pareto_front(points: Mapping[str, Sequence[float]]) -> set[str]:
    """The names that no other point dominates: at least as good in all coordinates and better in one.

    Every coordinate counts as better when smaller. Equal points are all on the front.
    """

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return {
        name
        for name, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    }


def _paired(
    values: Mapping[int, float],
    baseline: Mapping[int, float],
    combine: Callable[..., Floats],
) -> Estimate | None:
    seeds = sorted(set(values) & set(baseline))
    if not seeds:
        return None
    ours = np.array([values[seed] for seed in seeds])
    theirs = np.array([baseline[seed] for seed in seeds])
    drawn = combine(_resampled_means(ours), _resampled_means(theirs))
    return Estimate(float(combine(ours.mean(), theirs.mean())), _interval(drawn), len(seeds))


def _resampled_means(values: Floats) -> Floats:
    if len(values) <= _EXACT_UP_TO:
        means: Floats = values[_resamples(len(values))].mean(axis=1)
        return means
    return np.asarray(_weights(len(values)) @ values)


def _interval(drawn: Floats) -> Interval | None:
    if len(drawn) == 1:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high))


@cache
def _weights(n: int) -> Floats:
    """Each bootstrap sample as the share of every seed in it: a mean is then one product."""
    drawn = _resamples(n)
    counts = np.zeros((len(drawn), n))
    np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1)
    return counts / n


@cache
def _resamples(n: int) -> npt.NDArray[np.intp]:
    """Which seeds each bootstrap sample draws: all n^n ways for few seeds, else 10,000 fixed draws."""
    if n <= _EXACT_UP_TO:
        return np.array(list(product(range(n), repeat=n)))
    return np.random.default_rng(0).integers(0, n, size=(_DRAWS, n))
