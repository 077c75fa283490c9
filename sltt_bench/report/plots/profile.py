"""Plot: the share of tasks within a factor of the fastest."""

import math

from matplotlib.figure import Figure

from sltt_bench.report.document import Width
from sltt_bench.report.plots import style
from sltt_bench.report.plots.lines import PERCENT
from sltt_bench.report.targets import Profile

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
            axes.plot(steps, shares, drawstyle="steps-post", label=named.legend(method), **style.UNNAMED)
            continue
        axes.plot(
            steps, shares, drawstyle="steps-post",
            linewidth=style.weight(place)[0], markersize=style.weight(place)[1], markevery=[0], clip_on=False, label=method,
            **looks[method],
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
