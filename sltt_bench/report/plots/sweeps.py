"""Plots: memory, time and accuracy against what runs vary: T, batch size, any recipe field, or K."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.groups import Group
from sltt_bench.report.metrics import METRICS, Phase
from sltt_bench.report.plots import style
from sltt_bench.report.statistics import Stat

FIELD_WORDS = {"timesteps": "T, time steps", "train.batch_size": "batch size"}


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
        return list(dict.fromkeys(method for group in self.groups.values() for method in group.methods))

    @property
    def panels(self) -> list[str]:
        """What can be drawn: a figure that every finished group has, measured alike."""
        finished = [group for group in self.groups.values() if group.finished]
        shown: list[str] = []
        memories = {group.headline_memory() for group in finished}
        if len(memories) == 1 and (memory := memories.pop()):
            shown.append(memory)
        if len({group.phase for group in finished}) == 1:
            shown.append("epoch_s")
        if any(r.stat("last_test_top1") for group in finished for r in group.finished):
            # A field that is neither T nor batch size changes the task: accuracy is the question.
            shown = [*shown, "last_test_top1"] if self.field in FIELD_WORDS else ["last_test_top1"]
        return shown

    @property
    def phase(self) -> Phase:
        """Which epochs the times are from."""
        return next(group.phase for group in self.groups.values() if group.finished)

    def first_lost(self, method: str) -> float | None:
        """The smallest value at which no cell of the method finished for want of memory."""
        for value, group in self.groups.items():
            result = group.methods.get(method)
            if result and result.out_of_memory and not result.finished:
                return value
        return None


def find_sweeps(groups: Sequence[Group]) -> list[Sweep]:
    """Every family of at least two groups of one recipe that differ in a single numeric field."""
    known = [group for group in groups if group.settings]
    varied = varied_fields(groups)
    sweeps = []
    for name in sorted(
        varied, key=lambda name: (list(FIELD_WORDS).index(name) if name in FIELD_WORDS else 9, name)
    ):
        families: dict[Any, dict[float, Group]] = {}
        for group in known:
            value = group.settings.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                families.setdefault(_all_else(group, name), {})[value] = group
        for family in families.values():
            if len(family) > 1 and any(group.finished for group in family.values()):
                sweeps.append(Sweep(name, dict(sorted(family.items()))))
    return sweeps


def varied_fields(groups: Sequence[Group]) -> set[str]:
    """The recipe fields, dotted, that are not the same in all groups."""
    known = [group for group in groups if group.settings]
    return {key for group in known for key in group.settings if _varies(key, known)}


def _varies(name: str, groups: Sequence[Group]) -> bool:
    return len({repr(group.settings.get(name)) for group in groups}) > 1


def _all_else(group: Group, name: str) -> tuple[Any, ...]:
    """Everything about a group but one field, to find its siblings by."""
    key = {
        field: value
        for field, value in vars(group.key).items()
        if field not in ("recipe_hash", "timesteps", "batch_size", "tuning")
    }
    key["tuned"] = group.key.tuned
    settings = {field: value for field, value in group.settings.items() if field != name}
    return (*key.values(), repr(sorted(settings.items(), key=lambda item: item[0])))


def draw_sweep(sweep: Sweep, width: Width) -> Figure:
    """One panel for each figure; a hollow mark where a method ran out of memory beyond it."""
    shown = sweep.panels
    figure, axes = style.panels(width, len(shown), 2.15)
    for place, metric in zip(axes, shown, strict=True):
        series = {method: _series(sweep, method, metric) for method in sweep.methods}
        lost = {method: sweep.first_lost(method) for method in sweep.methods}
        _panel(place, series, lost, metric, sweep.phase)
        if place is axes[0]:
            _say_where_memory_ended(place, lost)
        value_axis(place, list(sweep.groups), FIELD_WORDS.get(sweep.field, sweep.field))
    style.legend_below(figure, axes[0], width)
    return figure


def _series(sweep: Sweep, method: str, metric: str) -> dict[float, Stat]:
    return {
        value: stat
        for value, group in sweep.groups.items()
        if method in group.methods and (stat := group.methods[method].stat(metric)) is not None
    }


# Against K --------------------------------------------------------------------------------------


def steps_used(group: Group) -> dict[str, int]:
    """Method → K, for SLTT-K and for SLTT, which uses all T steps (K = T); unbiased variants left out."""
    found = {}
    for method in group.methods:
        if match := re.fullmatch(r"sltt-k(\d+)", method):
            found[method] = int(match[1])
        elif method == "sltt":
            found[method] = group.key.timesteps
    return dict(sorted(found.items(), key=lambda item: item[1]))


def can_draw_k(group: Group) -> bool:
    """Whether at least three values of K finished."""
    return len({k for method, k in steps_used(group).items() if group.methods[method].finished}) > 2


def draw_k(group: Group, width: Width) -> Figure:
    """Memory, time and accuracy against K; SLTT is K = T, BPTT a level to compare with."""
    memory = group.headline_memory()
    shown = [name for name in (memory, "epoch_s", "last_test_top1") if name and _has(group, name)]
    figure, axes = style.panels(width, len(shown), 2.15)
    ks = steps_used(group)
    for place, metric in zip(axes, shown, strict=True):
        stats = {method: stat for method in ks if (stat := group.methods[method].stat(metric)) is not None}
        level = group.methods["bptt"].stat(metric) if "bptt" in group.methods else None
        scale = numbers.scale_of_metric(
            metric, [s.mean for s in (*stats.values(), *([level] if level else []))]
        )
        ys = [stat.mean / scale.factor for stat in stats.values()]
        place.plot([ks[method] for method in stats], ys, color=style.SOFT_INK, linewidth=1.0, zorder=1)
        for method, stat in stats.items():
            _line(place, method, {ks[method]: stat}, scale, None, (1.4, 5.5))
        if level is not None:
            colour = style.colour("bptt")
            place.axhline(
                level.mean / scale.factor, color=colour, linestyle="--", linewidth=1.2, label="bptt"
            )
        _label(place, metric, group.phase, scale)
        value_axis(place, sorted(set(ks.values())), "K, steps with a gradient")
    style.legend_below(figure, axes[0], width)
    return figure


def _has(group: Group, metric: str) -> bool:
    return any(group.methods[method].stat(metric) for method in steps_used(group))


# One panel --------------------------------------------------------------------------------------

_TITLES = {"epoch_s": "Time per epoch", "last_test_top1": "Accuracy"}


def _panel(
    axes: Axes,
    series: Mapping[str, Mapping[float, Stat]],
    lost: Mapping[str, float | None],
    metric: str,
    phase: Phase,
) -> None:
    means = [stat.mean for stats in series.values() for stat in stats.values()]
    scale = numbers.scale_of_metric(metric, means)
    for number, (method, stats) in enumerate(series.items()):
        if stats:
            _line(axes, method, stats, scale, lost.get(method), style.weight(number))
    _label(axes, metric, phase, scale)


def _label(axes: Axes, metric: str, phase: Phase, scale: numbers.Scale) -> None:
    label = {"epoch_s": f"{phase} epoch time", "last_test_top1": "test top-1"}.get(metric)
    axes.set_ylabel(f"{label or METRICS[metric].label} [{scale.unit}]")
    axes.set_title(_TITLES.get(metric, "Peak memory"))
    if metric == "last_test_top1":
        axes.margins(y=0.12)
    else:
        style.from_zero(axes, "y")
    style.plain_ticks(axes, "y")


def _line(
    axes: Axes,
    method: str,
    stats: Mapping[float, Stat],
    scale: numbers.Scale,
    lost: float | None,
    weight: tuple[float, float],
) -> None:
    """`weight`: line width and marker size."""
    colour, marker = style.colour(method), style.marker(method)
    width, size = weight
    xs = list(stats)
    ys = [stat.mean / scale.factor for stat in stats.values()]
    spreads = [(stat.std or 0) / scale.factor for stat in stats.values()]
    axes.errorbar(
        xs, ys, spreads if any(spreads) else None, color=colour, linestyle=style.line(method),
        marker=marker, markeredgecolor=style.SURFACE, markeredgewidth=0.6, elinewidth=0.9, linewidth=width, markersize=size, label=method,
    )  # fmt: skip
    if lost is not None and (good := [x for x in xs if x < lost]):
        y = ys[xs.index(good[-1])]
        axes.plot(good[-1], y, "o", markersize=10.5, mfc="none", mec=style.FAILED, zorder=6)


def _say_where_memory_ended(axes: Axes, lost: Mapping[str, float | None]) -> None:
    said = [f"{method}: out of memory at {value:g}" for method, value in lost.items() if value is not None]
    if not said:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.13 * len(said) * (high - low))  # room for the words above the largest value
    axes.text(
        0.03, 0.98, "\n".join(said), transform=axes.transAxes, va="top", fontsize=6.5, color=style.FAILED,
        bbox={"facecolor": style.SURFACE, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def value_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """The x axis: ticks where values are, logarithmic where they span a factor of more than 32.

    Memory grows linearly in T and batch size: up to there a reader should see a straight line.
    """
    if min(values) > 0 and max(values) / min(values) > 32:
        axes.set_xscale("log", base=2)
        gaps = [math.log2(value) for value in values]
    else:
        gaps = list(values)
    room = (max(gaps) - min(gaps)) / 9
    shown = [values[0]]
    for value, place in zip(values[1:], gaps[1:], strict=True):
        if place - gaps[list(values).index(shown[-1])] >= room:
            shown.append(value)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.08)
    axes.set_xlabel(label)
