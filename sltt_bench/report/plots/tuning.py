"""Plots: validation accuracy against what was searched, and the share of tasks within a factor of the fastest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sltt_bench.report import numbers
from sltt_bench.report.document import Width
from sltt_bench.report.fields import axis_words
from sltt_bench.report.plots import style
from sltt_bench.report.plots.lines import PERCENT, ticks_at
from sltt_bench.report.targets import Profile
from sltt_bench.report.tuning import TriedSetting, TuningStudy


def numeric_fields(study: TuningStudy) -> list[str]:
    """The searched fields that have an axis: numbers."""
    return [
        name
        for name in study.fields
        if all(
            isinstance(tried.setting[name], int | float) and not isinstance(tried.setting[name], bool)
            for of in study.methods.values()
            for tried in of
        )
    ]


def draw_search(study: TuningStudy, width: Width) -> Figure:
    """A panel for each numeric field: means as lines, every trial a dot, a ring around what was chosen.

    Where several fields were searched, a point of a line is the best over the others.
    """
    fields, named, looks = (
        numeric_fields(study),
        style.Named(tuple(study.methods)),
        style.looks(study.methods),
    )
    figure, axes = style.panels(width, len(fields), 2.3)
    of_seeds = numbers.of_single_seeds(
        len(tried.top1) for of in study.methods.values() for tried in of if tried.mean is not None
    )
    for panel, name in zip(axes, fields, strict=True):
        values = sorted({float(tried.setting[name]) for of in study.methods.values() for tried in of})
        if (own := study.as_recipe) is not None:
            panel.axvline(float(own[name]), color=style.SOFT_INK, linewidth=0.7, linestyle=(0, (1, 2)))
        for place, (method, settings) in enumerate(study.methods.items()):
            _curve(panel, method, best_by_value(settings, name), looks[method], style.weight(place), named)
        ticks_at(panel, values)
        panel.set_xlabel(axis_words(name))
        panel.set_ylabel(style.label("validation top-1 [%]", of_seeds, "y"))
        panel.set_title(f"Accuracy against {axis_words(name)}")
        panel.margins(x=0.08, y=0.1)
        style.plain_ticks(panel, "y", within=PERCENT)
    style.legend_below(figure, axes, width)
    return figure


def best_by_value(settings: Sequence[TriedSetting], name: str) -> Mapping[Any, TriedSetting]:
    """Value of a field → the best setting that has it (the chosen one if it does); rising."""
    best: dict[Any, TriedSetting] = {}
    for tried in settings:
        value = tried.setting[name]
        if tried.mean is not None and (value not in best or _quality(tried) > _quality(best[value])):
            best[value] = tried
    return dict(sorted(best.items()))


def _quality(tried: TriedSetting) -> tuple[bool, float]:
    return tried.chosen, tried.mean or 0.0


def _curve(
    axes: Axes,
    method: str,
    points: Mapping[Any, TriedSetting],
    look: style.Look,
    size: tuple[float, float],
    named: style.Named,
) -> None:
    """`size`: of line and marks."""
    colour = style.colour(method)
    xs, ys = list(points), [100 * (tried.mean or 0.0) for tried in points.values()]
    if method not in named:
        axes.plot(xs, ys, **style.unnamed(named.legend(method)))
        return
    axes.plot(
        xs, ys, color=colour, linestyle=look.stroke, marker=look.marker, markeredgecolor=style.SURFACE, markeredgewidth=0.6,
        linewidth=size[0], markersize=size[1], label=method,
    )  # fmt: skip
    for value, tried in points.items():
        if len(tried.top1) > 1:
            axes.plot(
                [value] * len(tried.top1),
                [100 * top1 for top1 in tried.top1],
                ".",
                color=colour,
                markersize=2.5,
                alpha=0.7,
            )
        if tried.chosen:
            axes.plot(
                [value], [100 * (tried.mean or 0.0)], "o", markersize=10, markerfacecolor="none", markeredgecolor=colour,
                markeredgewidth=1.0, zorder=6,
            )  # fmt: skip


_ROOM_FOR_MARKS = 0.015
"""Of the axis, so that marks at its begin do not cover the numbers beside it."""


def draw_profile(profile: Profile, width: Width) -> Figure:
    """Steps: for each factor the share of tasks on which a method takes at most so many times the fastest's time."""
    figure, (axes,) = style.panels(width, 1, 2.3)
    finite = [factor for of in profile.factors.values() for factor in of if math.isfinite(factor)]
    last = max(2.0, 1.25 * max(finite, default=1.0))
    named, looks = style.Named(tuple(profile.factors)), style.looks(profile.factors)
    for place, (method, factors) in enumerate(profile.factors.items()):
        steps = sorted({1.0, *(factor for factor in factors if math.isfinite(factor)), last})
        shares = [100 * profile.share(method, factor) for factor in steps]
        if method not in named:
            axes.plot(steps, shares, drawstyle="steps-post", **style.unnamed(named.legend(method)))
            continue
        axes.plot(
            steps, shares, drawstyle="steps-post",
            color=style.colour(method), linestyle=looks[method].stroke, linewidth=style.weight(place)[0],
            marker=looks[method].marker, markevery=[0], markersize=style.weight(place)[1], clip_on=False, label=method,
        )  # fmt: skip
    axes.set_xlim(1 - _ROOM_FOR_MARKS * (last - 1), last)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("time to target ÷ that of the task's fastest method [×]")
    axes.set_ylabel("tasks [%]")
    axes.set_title("Share of tasks within a factor of the fastest")
    style.plain_ticks(axes, "x", within=(1, math.inf))
    axes.set_xticks([1.0, *(tick for tick in axes.get_xticks() if 1 < tick <= last)])
    style.plain_ticks(axes, "y", within=PERCENT)
    style.legend_below(figure, [axes], width)
    return figure
