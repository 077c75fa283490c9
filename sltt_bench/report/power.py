"""How many seeds would tell a stated effect apart: the power of the report's own paired t intervals.

A comparison of two methods is decided by the t interval of their paired differences (`statistics.py`). For
normal differences of mean Δ and standard deviation σ the interval over n pairs excludes 0, on the side of Δ, with the
probability that a noncentral t variable of n − 1 degrees of freedom and noncentrality √n Δ / σ lies beyond the
quantile of Student's t (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2). σ comes from the
pairs at hand. A few pairs tell it badly, so there is a cautious count too, from the upper limit that σ stays
below with a probability of 80 % (Browne, Statistics in Medicine 14, 1995).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console

from sltt_bench.common.errors import nearest
from sltt_bench.common.format import DASH, counted, significant
from sltt_bench.planning.studies import setting_words
from sltt_bench.report import numbers
from sltt_bench.report.document import Heading, Table, TableCell
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import Group, NotComparable, settings_beside
from sltt_bench.report.metrics import METRICS, Metric
from sltt_bench.report.render.terminal import print_table
from sltt_bench.report.statistics import COLOURED_FROM, CONFIDENCE, Floats
from sltt_bench.results.reader import Results
from sltt_bench.results.writer import ResultsError

FIGURES = tuple(
    name
    for name, metric in METRICS.items()
    if not metric.exact and (metric.as_ratio or metric.unit == "accuracy")
)
"""Figures that vary from seed to seed and are compared as differences of accuracy or as ratios."""
CAUTION = 0.8
"""Probability with which the cautious count gives at least the wanted power."""
MOST_SEEDS = 10_000
"""Beyond so many there is no count."""


@dataclass(frozen=True)
class SeedsNeeded:
    """What the pairs of two methods say about one effect."""

    recipe: str
    conditions: str
    runs: tuple[str, ...]
    """Folders that the group's cells come from."""
    figure: str
    method: str
    baseline: str
    effect: float
    """Points of accuracy, or percent of the baseline's figure."""
    unit: str
    power: float
    pairs: int = 0
    """Pairs at hand."""
    difference: float | None = None
    """Their mean, method against baseline, in `unit`."""
    spread: float | None = None
    """Standard deviation of the paired differences in `unit`; for ratios the percent of one standard deviation
    of their logarithm."""
    seeds: int | None = None
    """Pairs that show the effect with the wanted power if the spread is what was measured."""
    cautious_seeds: int | None = None
    """The same at the upper limit of the spread."""
    detectable: float | None = None
    """The effect, in `unit`, that an interval over the pairs at hand shows with the wanted power."""
    reason: str = ""
    """Why a count is missing, or cannot be given cautiously."""
    caveats: tuple[str, ...] = ()


# Statistics -------------------------------------------------------------------------------------


def power_of(pairs: int, standard_effect: float) -> float:
    """Probability that the interval over so many pairs (≥ 2) lies on the side of an effect of so many standard deviations.

    An interval on the other side of 0 does not show the effect, and is not counted.
    """
    from scipy.special import nctdtr, stdtrit

    freedom = pairs - 1
    limit = stdtrit(freedom, (1 + CONFIDENCE) / 2)
    return 1 - float(nctdtr(freedom, math.sqrt(pairs) * standard_effect, limit))


def pairs_for(standard_effect: float, power: float) -> int | None:
    """The fewest pairs that reach the power, from COLOURED_FROM on; None beyond MOST_SEEDS."""
    counts = range(COLOURED_FROM, MOST_SEEDS + 1)
    place = bisect_left(counts, power, key=lambda pairs: power_of(pairs, standard_effect))
    return counts[place] if place < len(counts) else None


def standard_effect_for(pairs: int, power: float) -> float:
    """The effect, in standard deviations of the differences, that so many pairs (≥ 2) show with the power."""
    from scipy.optimize import brentq

    high = 1.0
    while power_of(pairs, high) < power:
        high *= 2
    return float(brentq(lambda effect: power_of(pairs, effect) - power, 0.0, high, xtol=1e-9))


def upper_limit_of_spread(spread: float, pairs: int) -> float:
    """What the true standard deviation stays below with the probability CAUTION, from a sample's (pairs ≥ 2)."""
    from scipy.special import chdtri

    return spread * math.sqrt((pairs - 1) / float(chdtri(pairs - 1, CAUTION)))


# From results -----------------------------------------------------------------------------------


def seeds_needed(
    results: Results,
    sources: Sequence[Path],
    effects: Sequence[float],
    *,
    power: float,
    figure: str = "last_test_top1",
    baseline: str = "bptt",
    methods: Sequence[str] | None = None,
) -> list[SeedsNeeded]:
    """For each effect and each method beside the baseline, in every group of comparable cells. `results`: read from
    `sources`.

    `effects`: points for accuracies, percent for what is compared as a ratio, > 0. `power`: in (0, 1).
    `methods`: None is all. Raises ResultsError if the folders hold no run, the figure is no noisy one, a method
    did not run, or no group holds the baseline beside another method.
    """
    if figure not in FIGURES:
        counted = figure in METRICS and METRICS[figure].exact
        why = "is counted, so that one pair decides" if counted else f"is unknown{nearest(figure, FIGURES)}"
        raise ResultsError(f"--figure {figure}: {why}; figures are {', '.join(FIGURES)}")
    groups = make_groups(results)
    named = ", ".join(map(str, sources))
    if not groups:
        raise ResultsError(
            f"{named}: no run in or below it{results.reasons}; `sltt-bench run RECIPE --seed 0,1,2` makes one"
        )
    present = sorted({name for group in groups for name in group.methods})
    for option, name in (("--baseline", baseline), *(("--method", name) for name in methods or ())):
        if name not in present:
            raise ResultsError(
                f"{option} {name}: no such method in {named}{nearest(name, present)}; there are {', '.join(present)}"
            )
    metric, rows = METRICS[figure], []
    unit = "%" if metric.as_ratio else "points"
    for group, conditions in zip(groups, _conditions(groups), strict=True):
        others = [name for name in group.methods if name != baseline and (methods is None or name in methods)]
        runs = tuple(results.runs[number].path.name for number in group.runs)
        for method, effect in product(others if baseline in group.methods else (), effects):
            row = SeedsNeeded(
                group.key.recipe, conditions, runs, figure, method, baseline, effect, unit, power,
                caveats=group.breaches_of(figure, (method, baseline)),
            )  # fmt: skip
            resolution = 0.0 if metric.as_ratio else group.accuracy_resolution
            rows.append(_counted(row, _differences(group, metric, method, baseline), metric, resolution))
    if not rows:
        raise ResultsError(
            f"{named}: {baseline} and another of the methods never ran under the same conditions; "
            f"`sltt-bench run RECIPE --method {baseline},sltt --seed 0,1,2` gives pairs"
        )
    return rows


def _conditions(groups: Sequence[Group]) -> list[str]:
    """Each group's conditions in words; where those of some are the same, with what tells these apart."""
    words = []
    for group in groups:
        settings = [setting_words(key, value) for key, value in settings_beside(group, groups).items()]
        words.append((group.key.recipe, *group.key.conditions(), *settings))
    conditions = []
    for group, own in zip(groups, words, strict=True):
        alike = [other for other, its in zip(groups, words, strict=True) if its == own]
        conditions.append(", ".join([*own[1:], *group.told_apart(alike)]))
    return conditions


def _differences(group: Group, metric: Metric, method: str, baseline: str) -> Floats | NotComparable:
    """Method − baseline of each pair: of accuracies as they are, of all else as logarithms."""
    pairs = group.pairs(metric.name, method, baseline)
    if isinstance(pairs, NotComparable):
        return pairs
    one, other = (np.array(list(side.values()), dtype=np.float64) for side in pairs)
    if metric.as_ratio:
        if min(one.min(), other.min()) <= 0:
            return NotComparable(f"{metric.label} is 0 in some cell, and a ratio of it says nothing")
        one, other = np.log(one), np.log(other)
    return np.subtract(one, other)


def _counted(
    row: SeedsNeeded, differences: Floats | NotComparable, metric: Metric, resolution: float
) -> SeedsNeeded:
    """The row with what the differences say; `resolution` is the smallest difference that can be seen."""
    if isinstance(differences, NotComparable):
        return replace(row, reason=differences.reason)
    pairs = len(differences)
    row = replace(row, pairs=pairs, difference=_shown(float(differences.mean()), metric))
    if pairs < 2:
        return replace(row, reason="one pair has no spread: run two seeds at least, better five")
    spread = float(differences.std(ddof=1))
    row = replace(row, spread=_shown(spread, metric))
    if math.isclose(spread, 0.0, abs_tol=1e-12):
        return replace(row, reason=f"all {pairs} pairs differ alike, so no spread was seen: run more seeds")
    at_hand = standard_effect_for(pairs, row.power) * spread
    row = replace(row, detectable=_shown(max(at_hand, resolution), metric))
    effect = math.log1p(row.effect / 100) if metric.as_ratio else row.effect / 100
    if effect <= resolution:
        sample = significant(100 * resolution)
        return replace(
            row,
            reason=f"{counted(row.effect, 'point')} {'is' if row.effect == 1 else 'are'} no more than one test sample ({counted(sample, 'point')}): no number of seeds shows them",
        )
    seeds = pairs_for(effect / spread, row.power)
    cautious = pairs_for(effect / upper_limit_of_spread(spread, pairs), row.power)
    effect_words = f"{row.effect:g} %" if metric.as_ratio else counted(row.effect, "point")
    needed = "are" if seeds is None else "may be"
    reason = f"for {effect_words} more than {MOST_SEEDS:,} seeds {needed} needed" * (cautious is None)
    return replace(row, seeds=seeds, cautious_seeds=cautious, reason=reason)


def _shown(value: float, metric: Metric) -> float:
    """A difference of accuracies in points, of logarithms in percent."""
    return 100 * (math.expm1(value) if metric.as_ratio else value)


# Printing ---------------------------------------------------------------------------------------


def print_seeds_needed(rows: Sequence[SeedsNeeded], console: Console) -> None:
    """A table for each group: a row for each method, a column for each effect."""
    first = rows[0]
    console.print(
        f"Seeds needed for the 95 % interval of paired differences in {METRICS[first.figure].label} to exclude 0 with a power of "
        f"{first.power:g}. First number: if the true spread is the measured one. “Up to”: if it is at its upper "
        f"{100 * CAUTION:g} % limit.",
        highlight=False,
    )
    for number, place in enumerate(dict.fromkeys((row.recipe, row.conditions, row.runs) for row in rows)):
        console.print()
        members = [row for row in rows if (row.recipe, row.conditions, row.runs) == place]
        print_table(_table(members, number), console)


def _table(rows: Sequence[SeedsNeeded], number: int) -> Table:
    first, unit = rows[0], rows[0].unit
    effects = list(dict.fromkeys(row.effect for row in rows))
    headings = (
        Heading("method", numeric=False),
        Heading("pairs"),
        Heading(f"against {first.baseline}", unit),
        Heading("standard deviation", unit),
        *(Heading(f"seeds for {effect:g} {unit}") for effect in effects),
        Heading("shown by these pairs", unit),
    )
    lines, notes = [], [f"From {numbers.listed(first.runs)}."]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        one = own[0]
        lines.append(
            (
                TableCell(method),
                TableCell(str(one.pairs) if one.pairs else DASH),
                TableCell(_number(one.difference, signed=True)),
                TableCell(_number(one.spread)),
                *map(_seeds_cell, own),
                TableCell(_number(one.detectable)),
            )
        )
        notes += [f"{method}: {text}." for row in own for text in (row.reason, *row.caveats) if text]
    title = ", ".join([first.recipe, first.conditions])
    return Table(f"power-{number}", title, headings, tuple(lines), tuple(dict.fromkeys(notes)))


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return DASH
    text = significant(abs(value))
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    return sign + text


def _seeds_cell(row: SeedsNeeded) -> TableCell:
    cautiously = "" if row.cautious_seeds is None else f"up to {row.cautious_seeds:,}"
    return TableCell(DASH if row.seeds is None else f"{row.seeds:,}", cautiously)
