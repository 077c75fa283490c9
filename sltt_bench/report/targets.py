"""Time and energy until a target accuracy, with a miss as never, and performance profiles over tasks.

The target is the recipe's (`target`), fixed before anything is run. A seed's time is that of training until the end
of the first epoch whose test accuracy is at least the target, evaluation not counted; a seed that never gets there
takes for ever, so that leaving out what failed cannot flatter a method. A method's time is the median over seeds.

The profile (Dolan and Moré 2002, as AlgoPerf has it: Dahl et al. 2023) is, for each factor f, the share of tasks on
which a method's time is at most f times that of the fastest method of the task.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median
from typing import Any

import numpy as np

from sltt_bench.planning.studies import TASK, task_name
from sltt_bench.report.groups import Group, MethodResult
from sltt_bench.report.keys import GroupKey
from sltt_bench.results.doubts import used_by_others

NEVER = math.inf


@dataclass(frozen=True)
class ToTarget:
    """One method's way to the target of its group."""

    method: str
    epochs: tuple[float, ...]
    """Of each seed's cell until the target; NEVER for a miss."""
    seconds: tuple[float, ...]
    joules: tuple[float, ...]
    """Empty where energy was not measured."""
    used_by_others: float = 0.0
    """Of the processors, until the target: the largest share of its cells, as `used_by_others` has it."""

    @property
    def reached(self) -> int:
        """Cells that reached it."""
        return sum(map(math.isfinite, self.epochs))

    @property
    def median_s(self) -> float:
        """Over all cells, of an even number the mean of the middle two: NEVER if half of them or more missed it."""
        return median(self.seconds)


def target_of(group: Group) -> float | None:
    """The recipe's target; None where it states none, or accuracies mean nothing."""
    target = group.recipe.get("target")
    return None if target is None or group.key.synthetic else float(target)


def to_target(group: Group) -> list[ToTarget]:
    """Every finished method's way to the group's target, if its figures can be trusted; none without a target.

    A seed of which no cell finished is a miss too. A method has no way of which some epoch's time is not known.
    """
    target = target_of(group)
    if target is None:
        return []
    ways = [
        _of_method(result, target)
        for result in group.finished
        if len(result.epochs) and not any(group.blocking(name, result.method) for name in _DECIDING)
    ]
    return [way for way in ways if not any(map(math.isnan, way.seconds))]


_DECIDING = ("last_test_top1", "epoch_s")
"""What the way to a target is made of."""


_READ = ["seed", "run", "epoch", "test_top1", "train_s", "energy_j", "cpu_util_mean", "cpu_others_mean"]


def _of_method(result: MethodResult, target: float) -> ToTarget:
    cells: dict[tuple[float, float], list[tuple[float, ...]]] = {}
    for seed, run, *figures in result.epochs[_READ].to_numpy(dtype=float).tolist():
        cells.setdefault((seed, run), []).append(tuple(figures))
    by_seed: dict[float, list[tuple[float, float, float, float]]] = {}
    for seed, run in sorted(cells):
        way = _of_cell(sorted(cells[seed, run], key=itemgetter(0)), target)
        by_seed.setdefault(seed, []).append(way)
    ways = [_of_repetitions(repetitions) for repetitions in by_seed.values()]
    ways += [(NEVER, NEVER, NEVER, 0.0)] * len(result.lost_seeds)
    epochs, seconds, joules, others = zip(*ways, strict=True)
    measured = not any(map(math.isnan, joules))
    return ToTarget(result.method, epochs, seconds, joules if measured else (), max(others))


def _of_repetitions(ways: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    """One seed's way: the median of each figure over its cells, NEVER where half of them missed; others' use at most."""
    epochs, seconds, joules, others = zip(*ways, strict=True)
    return median(epochs), float(np.median(seconds)), float(np.median(joules)), max(others)


def _of_cell(rows: Sequence[tuple[float, ...]], target: float) -> tuple[float, float, float, float]:
    """(epochs, seconds, joules, what others used of the processors) until the target, of rows (epoch, test top-1, seconds,
    joules, use of the processors, others' use) in order; joules NaN where some epoch lacks them."""
    unmeasured = any(math.isnan(row[3]) for row in rows)
    until = next((number for number, (_, top1, *_) in enumerate(rows, start=1) if top1 >= target), None)
    if until is None:
        return NEVER, NEVER, math.nan if unmeasured else NEVER, 0.0
    seconds, joules = (float(np.sum([row[place] for row in rows[:until]])) for place in (2, 3))
    watched = [(row[2], *row[4:]) for row in rows[:until] if not any(map(math.isnan, row[4:]))]
    used = used_by_others(*zip(*watched, strict=True), summed=True) if watched else 0.0
    return float(until), seconds, math.nan if unmeasured else joules, used


# Profiles ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """How near to the fastest each method is, over several tasks measured alike."""

    tasks: tuple[str, ...]
    """Recipes; of a study the recipes that its grids extend."""
    factors: dict[str, tuple[float, ...]]
    """Method → its time over the fastest method's, task by task; NEVER where it missed the target."""
    key: GroupKey
    """Of its first task; the others' differ in what is the task's alone."""
    study: str
    """Whose tasks they are; '' where they are recipes."""
    left_out: tuple[str, ...]
    """Methods that did not run on every task."""
    seeds: frozenset[int]
    """Over how many seeds the medians are."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What all tasks were measured on and with."""
        rule = "tuned" if self.key.tuned else self.key.tuning
        return self.key.hardware, f"backend {self.key.backend}", rule

    @property
    def title(self) -> str:
        """Whose tasks it is over."""
        return f"Performance profile over {f'the tasks of {self.study}' if self.study else 'tasks'}"

    @property
    def reached(self) -> bool:
        """Whether some method reached the target of some task."""
        return any(math.isfinite(factor) for of in self.factors.values() for factor in of)

    def share(self, method: str, factor: float) -> float:
        """Of the tasks on which the method takes at most `factor` times as long as the fastest."""
        return sum(own <= factor * (1 + 1e-12) for own in self.factors[method]) / len(self.tasks)


_OF_THE_TASK = ("recipe", "recipe_hash", "timesteps", "batch_size", "tuning", "precision")
"""Parts of a group's key in which tasks may differ."""


def profiles(groups: Sequence[Group]) -> list[Profile]:
    """One for each set of two tasks or more that were measured alike with two methods or more.

    Tuned methods and methods at the recipe's learning rate are in no profile together. The tasks of a study have a
    profile of their own; what was set otherwise than the task has it is in none. Of a task that was measured in several
    versions (of its recipe, of its tuning) the newest is taken.
    """
    families: dict[tuple[Any, ...], dict[str, Group]] = {}
    for group in groups:
        if to_target(group) and not set(group.overrides) - {TASK}:
            alike = tuple(value for name, value in vars(group.key).items() if name not in _OF_THE_TASK)
            study = group.key.recipe if TASK in group.overrides else ""
            task = task_name(group.overrides.get(TASK, group.key.recipe))
            family = families.setdefault((group.key.tuned, study, *alike), {})
            if task not in family or max(family[task].runs) < max(group.runs):
                family[task] = group
    each = (_profile(study, tasks) for (_, study, *_), tasks in families.items())
    return [profile for profile in each if profile is not None]


def _profile(study: str, tasks: dict[str, Group]) -> Profile | None:
    ways = {task: to_target(group) for task, group in sorted(tasks.items())}
    times = {task: {way.method: way.median_s for way in of_task} for task, of_task in ways.items()}
    everywhere = set.intersection(*(set(of_task) for of_task in times.values()))
    methods = [name for name in next(iter(times.values())) if name in everywhere]
    if len(tasks) < 2 or len(methods) < 2:
        return None
    best = {task: min(of_task[name] for name in methods) for task, of_task in times.items()}
    return Profile(
        tasks=tuple(times),
        factors={
            name: tuple(
                of_task[name] / best[task] if math.isfinite(of_task[name]) else NEVER
                for task, of_task in times.items()
            )
            for name in methods
        },
        key=next(iter(tasks.values())).key,
        study=study,
        left_out=tuple(sorted({name for of_task in times.values() for name in of_task} - everywhere)),
        seeds=frozenset(
            len(way.seconds) for of_task in ways.values() for way in of_task if way.method in everywhere
        ),
    )
