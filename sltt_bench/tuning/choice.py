"""Chooses the setting with the best mean validation accuracy among a method's trials.

The functions are pure and never see a test figure.

    value of a setting    mean over its seeds of the last epoch's validation accuracy; none if a seed was lost
    chosen                the largest; ties go to the setting nearest the middle of the grid, then the first

A trial is *lost* if its setting ended it: the loss diverged, or memory ran out. This is a result, and counts
towards the budget. A trial that ended otherwise (killed, timed out, a fault of the machine) is *open*. As
long as a method has an open trial, nothing is chosen for it, since its budget would be smaller than the
others'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean
from typing import Any

from sltt_bench.common.failures import DIVERGED
from sltt_bench.common.format import counted

Setting = Mapping[str, Any]
"""Searched field (dotted) → value."""
Grid = Mapping[str, Sequence[Any]]
"""Searched field → its values, in order."""

_EQUAL = 1e-12
"""Tolerance for equal means: those of the same counts over the same seeds differ by rounding alone."""


@dataclass(frozen=True)
class Trial:
    """The outcome of training one setting with one seed."""

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
    """Fields whose chosen value is the first or last of the grid, so that a better one may lie beyond."""


def is_lost(status: str, reason: str) -> bool:
    """Whether an unfinished trial was ended by its setting, so that another attempt would not help."""
    return status == "oom" or (status == "error" and reason.startswith(DIVERGED))


def choose(grid: Grid, trials: Sequence[Trial]) -> Choice | None:
    """Returns the best setting among one method's trials; None if every setting lost a trial.

    Raises ValueError unless each combination of the grid was tried once with each of the same seeds.
    """
    tried: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        tried.setdefault(_place(grid, trial.setting), []).append(trial)
    seeds = {tuple(sorted(trial.seed for trial in same)) for same in tried.values()}
    points = prod(map(len, grid.values()))
    if len(tried) != points or len(seeds) != 1 or len(set(seed := seeds.pop())) != len(seed):
        raise ValueError(
            f"{len(trials)} trials are not those of a grid of {counted(points, 'setting')}, each with the same seeds"
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
    """Returns a setting's mean accuracy over its trials, one for each seed; None if one was lost."""
    known = [trial.top1 for trial in trials if trial.top1 is not None]
    return fmean(known) if len(known) == len(trials) else None


def _place(grid: Grid, setting: Setting) -> tuple[int, ...]:
    """Returns a setting's place in the grid: an index for each field."""
    return tuple(list(values).index(setting[name]) for name, values in grid.items())


def _from_the_middle(grid: Grid, place: Sequence[int]) -> float:
    return sum(abs(index - (len(values) - 1) / 2) for values, index in zip(grid.values(), place, strict=True))
