"""The choice among a method's trials: the best mean validation accuracy. Pure; it never sees a test figure.

    value of a setting    mean over its seeds of the last epoch's validation accuracy; none if a seed was lost
    chosen                the largest; of equal ones that nearest to the middle of the grid, then the first in its order

A trial is lost where the setting itself ended it: the loss diverged, or memory ran out. That is an answer, and
counts against the budget. A trial that ended otherwise (killed, timed out, a machine's fault) is open: as long as
one is, nothing is chosen for its method, whose budget would be smaller than that of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean
from typing import Any

from sltt_bench.failures import DIVERGED

Setting = Mapping[str, Any]
"""Searched field (dotted) → value."""
Grid = Mapping[str, Sequence[Any]]
"""Searched field → its values, in order."""

_EQUAL = 1e-12
"""Means of the same counts over the same seeds differ by rounding alone."""


@dataclass(frozen=True)
class Trial:
    """What came of training one setting with one seed."""

    setting: Setting
    seed: int
    top1: float | None
    """Validation accuracy after the last epoch, 0 to 1; None: the trial was lost."""


@dataclass(frozen=True)
class Choice:
    """The setting that a method is trained with."""

    setting: Setting
    top1: float
    """Mean over its trials' seeds."""
    at_edge: tuple[str, ...]
    """Fields whose chosen value is the first or the last of the grid: a better one may lie beyond."""


def is_lost(status: str, reason: str) -> bool:
    """Whether a trial that did not finish was ended by its setting, so that trying again would not help."""
    return status == "oom" or (status == "error" and reason.startswith(DIVERGED))


def choose(grid: Grid, trials: Sequence[Trial]) -> Choice | None:
    """The best setting of one method's trials; None if every setting lost a trial.

    Raises ValueError unless each combination of the grid was tried with the same seeds, once with each.
    """
    tried: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        tried.setdefault(_place(grid, trial.setting), []).append(trial)
    seeds = {tuple(sorted(trial.seed for trial in same)) for same in tried.values()}
    points = prod(map(len, grid.values()))
    if len(tried) != points or len(seeds) != 1 or len(set(seed := seeds.pop())) != len(seed):
        raise ValueError(
            f"{len(trials)} trials are not those of a grid of {points} settings, each with the same seeds"
        )
    means = {place: value for place, same in tried.items() if (value := mean_top1(same)) is not None}
    if not means:
        return None
    best = max(means.values())
    place = min(
        (place for place, value in means.items() if value >= best - _EQUAL),
        key=lambda place: (_from_the_middle(grid, place), place),
    )
    return Choice(
        setting=tried[place][0].setting,
        top1=means[place],
        at_edge=tuple(
            name for name, index in zip(grid, place, strict=True) if index in (0, len(grid[name]) - 1)
        ),
    )


def mean_top1(trials: Sequence[Trial]) -> float | None:
    """The value of a setting over the trials of its seeds; None if one was lost."""
    known = [trial.top1 for trial in trials if trial.top1 is not None]
    return fmean(known) if len(known) == len(trials) else None


def _place(grid: Grid, setting: Setting) -> tuple[int, ...]:
    """Where in the grid a setting lies: an index for each field."""
    return tuple(list(values).index(setting[name]) for name, values in grid.items())


def _from_the_middle(grid: Grid, place: Sequence[int]) -> float:
    return sum(abs(index - (len(values) - 1) / 2) for values, index in zip(grid.values(), place, strict=True))
