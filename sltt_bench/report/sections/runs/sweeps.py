"""Groups of one recipe that differ in a single field: what is drawn against T, batch size, or any other number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sltt_bench.report.fields import axis_words
from sltt_bench.report.groups import Group, headline_of, method_order, varied_fields
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots.lines import Axis, Panel, fitted_line
from sltt_bench.report.sections.runs.panels import axis_of, mean_line, scale_of, title_of
from sltt_bench.report.sections.runs.tables import measured
from sltt_bench.report.statistics import Slope, Stat, slope_of

_OF_THE_SAME_TASK = ("timesteps", "train.batch_size")
"""Fields that change what a task costs, and not what is asked."""


@dataclass(frozen=True)
class Sweep:
    """Groups that are alike in all but one recipe field."""

    field: str
    """The recipe field, dotted."""
    groups: Mapping[float, Group]
    """Value of the field → group, in rising order."""

    @property
    def methods(self) -> list[str]:
        """Every method of some group, in the usual order."""
        return sorted({name for group in self.groups.values() for name in group.methods}, key=method_order)

    @property
    def metrics(self) -> list[str]:
        """What can be drawn: a figure that every finished group has, measured alike."""
        finished = [group for group in self.groups.values() if group.finished]
        shown: list[str] = []
        if memory := headline_of(finished):
            shown.append(memory)
        if len({group.phase for group in finished}) == 1:
            shown.append("epoch_s")
        if any(measured(group, "last_test_top1") for group in finished):
            shown = [*shown, "last_test_top1"] if self.field in _OF_THE_SAME_TASK else ["last_test_top1"]
        return shown

    @property
    def memory(self) -> str | None:
        """The figure of memory that can be drawn."""
        return next((metric for metric in self.metrics if METRICS[metric].unit == "bytes"), None)

    @property
    def words(self) -> str:
        """The field as an axis names it."""
        return axis_words(self.field)

    @property
    def lost(self) -> dict[str, float]:
        """Method → the smallest value at which no cell of it finished for want of memory."""
        lost: dict[str, float] = {}
        for name, (value, group) in product(self.methods, self.groups.items()):
            result = group.methods.get(name)
            if result and result.out_of_memory and not result.finished:
                lost.setdefault(name, value)
        return lost

    def stats(self, method: str, metric: str) -> dict[float, Stat]:
        """Value of the field → the method's mean, where it was measured."""
        return {
            value: stat
            for value, group in self.groups.items()
            if (stat := group.stat(metric, method)) is not None
        }

    def slopes(self) -> dict[str, Slope]:
        """Method → how its memory grows a time step; empty against any other field, or below three values of T."""
        if self.field != "timesteps" or self.memory is None:
            return {}
        stats = {name: self.stats(name, self.memory) for name in self.methods}
        lines = {name: [(x, stat.mean) for x, stat in line.items()] for name, line in stats.items()}
        return {name: slope for name, line in lines.items() if (slope := slope_of(line)) is not None}


def find_sweeps(groups: Sequence[Group]) -> list[Sweep]:
    """Every family of at least two groups of one recipe that differ in a single numeric field.

    Groups of one family that have the same value differ in what no field tells (what training started from): which of them
    belongs to the others is unknown, and none is in the sweep.
    """
    known = [group for group in groups if group.settings]
    sweeps = []
    for name in sorted(varied_fields(groups), key=lambda name: (name not in _OF_THE_SAME_TASK, name)):
        families: dict[Any, dict[float, list[Group]]] = {}
        for group in known:
            value = group.settings.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                families.setdefault(_all_else(group, name), {}).setdefault(value, []).append(group)
        for alike in families.values():
            family = {value: groups[0] for value, groups in alike.items() if len(groups) == 1}
            if len(family) > 1 and any(group.finished for group in family.values()):
                sweeps.append(Sweep(name, dict(sorted(family.items()))))
    return sweeps


def _all_else(group: Group, name: str) -> tuple[Any, ...]:
    """Everything about a group but one field, to find its siblings by."""
    varied = ("recipe_hash", "timesteps", "batch_size", "tuning")
    key = (value for field, value in vars(group.key).items() if field not in varied)
    settings = sorted((field, repr(value)) for field, value in group.settings.items() if field != name)
    return (*key, group.key.tuning if group.key.tuned else "", group.protocol, *settings)


def sweep_panels(sweep: Sweep, title: str = "", beside: Sequence[Sweep] = ()) -> Iterator[Panel]:
    """A panel for each figure. `title` takes the place of the figure's, where several sweeps stand side by side; `beside`:
    all of these, which have one unit."""
    # Where times are drawn, they are from the same epochs in all groups.
    phase = next(group.phase for group in sweep.groups.values() if group.finished)
    remarks = tuple(f"{method}: out of memory at {value:g}" for method, value in sweep.lost.items())
    for number, metric in enumerate(sweep.metrics):
        stats = {name: sweep.stats(name, metric) for name in sweep.methods}
        shown = [other.stats(name, metric) for other in beside or (sweep,) for name in other.methods]
        scale = scale_of(metric, [stat for line in shown for stat in line.values()])
        lines = [mean_line(name, metric, sweep.groups, scale.factor) for name in sweep.methods if stats[name]]
        if metric == sweep.memory:
            lines += [fitted_line(name, slope, scale.factor) for name, slope in sweep.slopes().items()]
        rings = [
            (max(good), stats[name][max(good)].mean / scale.factor)
            for name, value in sweep.lost.items()
            if (good := [x for x in stats[name] if x < value])
        ]
        yield Panel(
            title or title_of(metric),
            Axis(sweep.words, at=tuple(sweep.groups)),
            axis_of(metric, phase, scale, [stat for line in stats.values() for stat in line.values()]),
            tuple(lines),
            rings=tuple(rings),
            remarks=remarks if number == 0 else (),
        )
