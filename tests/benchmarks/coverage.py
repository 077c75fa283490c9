"""Measures how often the report's 95 % intervals hold the truth: `python -m tests.benchmarks.coverage`.

Each case draws two methods that are equal, 4,000 times with n pairs of seeds. Printed are the share of intervals that
hold "no difference", and behind it the share of comparisons that the report would colour all the same.
"""

from collections.abc import Callable

import numpy as np

from sltt_bench.report.statistics import Floats, mean_with_interval, paired_difference, paired_ratio

DRAWS = 4000
PAIRS = (2, 3, 5, 10)
TEST_SAMPLES = 360
Draw = Callable[[np.random.Generator, int], tuple[Floats, Floats]]
"""Random numbers, n → the figures of two equal methods, [n] each."""


def normal(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Accuracies that scatter by 1 point."""
    return chance.normal(0.9, 0.01, n), chance.normal(0.9, 0.01, n)


def heavy_tailed(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Differences with Student's t of 3 degrees of freedom."""
    return 0.9 + 0.01 * chance.standard_t(3, n), np.full(n, 0.9)


def skewed(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Differences with an exponential distribution, as where some seeds of one method fall far behind."""
    return 0.91 - 0.01 * chance.exponential(1.0, n), np.full(n, 0.9)


def few_samples(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Accuracies that scatter by less than one test sample, so that many seeds are equal."""
    first, second = (np.round(chance.normal(340, 0.7, n)) / TEST_SAMPLES for _ in range(2))
    return first, second


def other_test_samples(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Accuracies of 94 %, each time on test samples drawn anew, some of which are harder for one method than for the other."""
    difficulty = 3.6 + 2 * chance.normal(size=TEST_SAMPLES)
    first, second = (
        np.mean(
            difficulty + 0.7 * chance.normal(size=TEST_SAMPLES) + chance.normal(size=(n, TEST_SAMPLES)) > 0, 1
        )
        for _ in range(2)
    )
    return first, second


def log_normal(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Times that scatter by 10 %."""
    return np.exp(chance.normal(0, 0.1, n)), np.exp(chance.normal(0, 0.1, n))


def disturbed(chance: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Times that scatter by 1 %, of which each tenth is half as long again."""
    first, second = (
        np.exp(chance.normal(0, 0.01, n)) * np.where(chance.random(n) < 0.1, 1.5, 1) for _ in range(2)
    )
    return first, second


DIFFERENCES: tuple[Draw, ...] = (normal, heavy_tailed, skewed, few_samples, other_test_samples)
COUNTED: tuple[Draw, ...] = (few_samples, other_test_samples)
"""Those of whole test samples."""
RATIOS: tuple[Draw, ...] = (log_normal, disturbed)


def covered(draw: Draw, n: int, draws: int = DRAWS) -> tuple[float, float]:
    """(share of the intervals that hold no difference, share that would have a colour)."""
    chance, no_difference = np.random.default_rng(n), 1.0 if draw in RATIOS else 0.0
    held = coloured = 0
    for _ in range(draws):
        first, second = (dict(enumerate(figures)) for figures in draw(chance, n))
        estimate = (
            paired_ratio(first, second)
            if draw in RATIOS
            else paired_difference(first, second, resolution=1 / TEST_SAMPLES if draw in COUNTED else 0.0)
        )
        assert estimate is not None
        held += not estimate.excludes(no_difference)
        coloured += estimate.certain and estimate.excludes(no_difference)
    return held / draws, coloured / draws


def main() -> None:
    """Print a line for each case, and one for the mean of a method on test samples drawn anew."""
    for draw in (*DIFFERENCES, *RATIOS):
        shares = [covered(draw, n) for n in PAIRS]
        words = (
            f"n = {n}: {held:.1%} ({coloured:.1%})" for n, (held, coloured) in zip(PAIRS, shares, strict=True)
        )
        print(f"{draw.__name__}: {', '.join(words)}", flush=True)
    chance = np.random.default_rng(0)
    truth = np.mean([other_test_samples(chance, 1)[0] for _ in range(4000)])
    means = [
        mean_with_interval(other_test_samples(chance, 5)[0], resolution=1 / TEST_SAMPLES)
        for _ in range(DRAWS)
    ]
    held = sum(
        mean.interval is not None and mean.interval.low <= truth <= mean.interval.high for mean in means
    )
    print(f"one method's mean, other_test_samples, n = 5: {held / DRAWS:.1%}")


if __name__ == "__main__":
    main()
