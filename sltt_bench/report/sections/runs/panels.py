"""What the figures of one group show: its methods' bars, pairs, trade-offs, curves against K and timelines."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from sltt_bench.common.format import Scale, scale_for
from sltt_bench.report import numbers
from sltt_bench.report.groups import Group, NotComparable
from sltt_bench.report.metrics import METRICS, Phase
from sltt_bench.report.plots import style
from sltt_bench.report.plots.bars import Bar, BarPanel
from sltt_bench.report.plots.dots import Dot, DotPanel
from sltt_bench.report.plots.lines import ACCURACY, SURVIVORS, Axis, Line, Panel
from sltt_bench.report.sections.runs.tables import comparison, measured
from sltt_bench.report.statistics import PairedEstimate, Stat, pareto_front
from sltt_bench.results.reader import Run

MOST_METHODS = 40
"""So many methods a figure of bars or rows holds; the tables hold all."""
_MOST_SAMPLES = 1500
"""Points of a timeline."""


def shown_figures(group: Group) -> list[str]:
    """What plots of a group show of its methods: what some of them has, and can be trusted."""
    names = (group.headline_memory(), "epoch_s", "last_test_top1")
    return [name for name in names if name and any(group.stat(name, method) for method in group.methods)]


def title_of(metric: str) -> str:
    """The title of a panel of a figure; one that is neither time nor accuracy is a peak of memory."""
    return {"epoch_s": "Time per epoch", "last_test_top1": "Accuracy"}.get(metric, "Peak memory")


def axis_of(metric: str, phase: Phase, scale: Scale, stats: Iterable[Stat]) -> Axis:
    """The axis of a figure, `stats` being what is drawn of it; accuracies need not begin at 0."""
    of_seeds = "" if METRICS[metric].exact else numbers.of_single_seeds(stat.n for stat in stats)
    if metric == "last_test_top1":
        return replace(ACCURACY, seeds=of_seeds)
    words = f"{phase} epoch time" if metric == "epoch_s" else METRICS[metric].label
    return Axis(f"{words} [{scale.unit}]", from_zero=True, seeds=of_seeds)


def scale_of(metric: str, stats: Iterable[Stat]) -> Scale:
    """The unit in which the means of a figure are drawn."""
    return scale_for(METRICS[metric].unit, [stat.mean for stat in stats])


def mean_line(method: str, metric: str, groups: Mapping[float, Group], factor: float) -> Line:
    """A method's mean in the group at each x, with its standard deviation and its seeds.

    Where the method was not measured the line has a gap; a mean that leaves out seeds is marked.
    """
    nowhere = (float("nan"), float("nan"))
    xs, ys, spreads, survivors, dots = [], [], [], [], []
    for x, group in groups.items():
        result, stat = group.methods.get(method), group.stat(metric, method)
        xs.append(x)
        ys.append(stat.mean / factor if stat else float("nan"))
        spreads.append((stat and scaled(stat.spread, factor)) or nowhere)
        survivors.append(bool(stat and result and result.lost_seeds))
        if stat and stat.n > 1 and result:
            dots += [(x, value / factor) for value in result.values[metric].values()]
    known = [place for place, y in enumerate(ys) if y == y]
    kept = slice(known[0], known[-1] + 1) if known else slice(0)
    return Line(
        method, xs[kept], ys[kept], spreads[kept], method=method, dots=dots, survivors=survivors[kept]
    )


def scaled(spread: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    """A spread in the unit of an axis."""
    return spread and (spread[0] / factor, spread[1] / factor)


# Methods side by side ---------------------------------------------------------------------------


def method_bars(group: Group, baseline: str) -> list[BarPanel]:
    """Peak memory and epoch time of each method, with the ratio to the baseline."""
    return [_bars_of(group, name, baseline) for name in shown_figures(group) if name != "last_test_top1"]


def _bars_of(group: Group, metric: str, baseline: str) -> BarPanel:
    """The methods that finished, with their figure or why it is none, or ran out of memory."""
    results = [r for r in group.methods.values() if r.finished or r.out_of_memory][:MOST_METHODS]
    stats = {r.method: stat for r in results if (stat := group.stat(metric, r.method))}
    scale, exact = scale_of(metric, stats.values()), METRICS[metric].exact
    all_single = all(stat.n == 1 for stat in stats.values())  # which the axis says
    bars = []
    for result in results:
        stat = stats.get(result.method)
        if stat is None:
            failure = "contradictory" if result.finished else "out of memory"
            endless = not result.finished and metric != "epoch_s"
            bars.append(Bar(result.method, failure=failure, endless=endless))
            continue
        text = scale.number(stat.mean) + f" {SURVIVORS}" * bool(result.lost_seeds)
        estimate = group.ratio(metric, result.method, baseline)
        if isinstance(estimate, PairedEstimate) and result.method != baseline:
            text += f"  ({numbers.ratio(estimate.value)})"
        if stat.n == 1 and not (exact or all_single):
            text += "  n = 1"
        low, high = scaled(stat.spread, scale.factor) or (0.0, 0.0)
        spread = (low, high) if low < high else None
        is_measured = spread or (stat.n == 1 and not exact)
        seeds = result.values[metric].values() if is_measured else ()
        dots = tuple(value / scale.factor for value in seeds)
        bars.append(Bar(result.method, (stat.mean / scale.factor,), text, result.method, spread, dots))
    axis = axis_of(metric, group.phase, scale, stats.values() if all_single else ())
    return BarPanel(title_of(metric), style.label(axis.label, axis.seeds, "x"), tuple(bars))


def pair_dots(group: Group, baseline: str) -> list[DotPanel]:
    """Every pair of every noisy comparison with the baseline; none where no method has two pairs."""
    noisy = [name for name in shown_figures(group) if not METRICS[name].exact]
    methods = [r.method for r in group.finished if r.method != baseline][:MOST_METHODS]
    dots = {name: [_dot(group, name, method, baseline) for method in methods] for name in noisy}
    rows = [row for row in range(len(methods)) if any(len(dots[name][row].pairs) > 1 for name in noisy)]
    return [
        _dot_panel(name, baseline, [dots[name][row] for row in rows])
        for name in noisy
        if any(dots[name][row].pairs for row in rows)
    ]


def _dot(group: Group, metric: str, method: str, baseline: str) -> Dot:
    as_ratio, compared = METRICS[metric].as_ratio, comparison(group, metric, method, baseline)
    pairs = group.pairs(metric, method, baseline)
    if isinstance(compared, NotComparable) or isinstance(pairs, NotComparable):
        return Dot(method, None, "not comparable", method=method)
    one, other = (list(side.values()) for side in pairs)
    factor = 1.0 if as_ratio else 100.0
    single = [a / b if as_ratio else a - b for a, b in zip(one, other, strict=True)]
    interval = compared.interval
    return Dot(
        method,
        factor * compared.value,
        numbers.compared(metric)(compared.value),
        (factor * interval.low, factor * interval.high) if interval else None,
        pairs=tuple(factor * value for value in single),
        method=method,
    )


def _dot_panel(metric: str, baseline: str, dots: Sequence[Dot]) -> DotPanel:
    as_ratio = METRICS[metric].as_ratio
    label = f"÷ {baseline} [×]" if as_ratio else f"− {baseline} [points]"
    return DotPanel(title_of(metric), label, tuple(dots), no_change=float(as_ratio), from_zero=as_ratio)


# Accuracy, memory and time traded off -----------------------------------------------------------


def tradeoff_panels(group: Group) -> list[Panel]:
    """Accuracy over memory and over time; for random data memory against epoch time. Filled: on the front."""
    memory = group.headline_memory() or ""
    axes = [(memory, "last_test_top1"), ("epoch_s", "last_test_top1")]
    if not measured(group, "last_test_top1"):
        axes = [("epoch_s", memory)]
    return [_tradeoff(group, x, y) for x, y in axes]


def _tradeoff(group: Group, x: str, y: str) -> Panel:
    stats = {r.method: (group.stat(x, r.method), group.stat(y, r.method)) for r in group.finished}
    points = {method: (a, b) for method, (a, b) in stats.items() if a is not None and b is not None}
    across, up = scale_of(x, [a for a, _ in points.values()]), scale_of(y, [b for _, b in points.values()])
    lines = [_front(points, across, up, METRICS[y].better == "higher")]
    for method, (a, b) in points.items():
        result = group.methods[method]
        one, other = result.values[x], result.values[y]
        shared = sorted(set(one) & set(other)) if a.n > 1 else []
        lines.append(
            Line(
                method, [a.mean / across.factor], [b.mean / up.factor],
                _around(b, up.factor), _around(a, across.factor), method=method,
                stroke="none", marks="filled" if method in group.pareto_front else "hollow", size=(1.4, 6.5),
                dots=[(one[seed] / across.factor, other[seed] / up.factor) for seed in shared],
                survivors=[bool(result.lost_seeds)],
            )
        )  # fmt: skip
    over = "Accuracy over time" if x == "epoch_s" else "Accuracy over memory"
    return Panel(
        over if y == "last_test_top1" else "Memory against epoch time",
        axis_of(x, group.phase, across, [a for a, _ in points.values()]),
        axis_of(y, group.phase, up, [b for _, b in points.values()]),
        tuple(lines),
    )


def _around(stat: Stat, factor: float) -> list[tuple[float, float]]:
    """The spread of a single point, if it has one."""
    spread = scaled(stat.spread, factor)
    return [spread] if spread else []


def _front(points: Mapping[str, tuple[Stat, Stat]], across: Scale, up: Scale, higher: bool) -> Line:
    """The front of two figures as a step line: nothing measured lies beyond it."""
    sign = -1 if higher else 1
    members = pareto_front({name: (a.mean, sign * b.mean) for name, (a, b) in points.items()})
    on_front = (points[name] for name in members)
    corners = sorted((a.mean / across.factor, b.mean / up.factor) for a, b in on_front)
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return Line("", xs, ys, stroke="step", marks="none", soft=True)


# Against K --------------------------------------------------------------------------------------


def steps_used(group: Group) -> dict[str, int]:
    """Method → K, for SLTT-K and for SLTT, which uses all T steps (K = T); unbiased variants left out. Empty where fewer
    than three values of K finished."""
    steps = {}
    for method in group.methods:
        if match := re.fullmatch(r"sltt-k(\d+)", method):
            steps[method] = int(match[1])
        elif method == "sltt":
            steps[method] = group.key.timesteps
    finished = {k for method, k in steps.items() if group.methods[method].finished}
    return dict(sorted(steps.items(), key=lambda item: item[1])) if len(finished) > 2 else {}


def k_panels(group: Group) -> list[Panel]:
    """Memory, time and accuracy against K; SLTT is K = T, BPTT a level to compare with."""
    ks = steps_used(group)
    known = [name for name in shown_figures(group) if any(group.stat(name, method) for method in ks)]
    return [_against_k(group, name, ks) for name in known]


def _against_k(group: Group, metric: str, ks: Mapping[str, int]) -> Panel:
    stats = {method: stat for method in ks if (stat := group.stat(metric, method)) is not None}
    level = group.stat(metric, "bptt")
    scale = scale_of(metric, [*stats.values(), *([level] if level else [])])
    factor = scale.factor
    ys = [stat.mean / factor for stat in stats.values()]
    lines = [Line("", [ks[method] for method in stats], ys, marks="none", soft=True, size=(1.0, 0))]
    lines += [replace(mean_line(m, metric, {ks[m]: group}, factor), size=(1.4, 5.5)) for m in stats]
    if level is not None:
        lines.append(Line("bptt", ys=[level.mean / factor], method="bptt", stroke="level", size=(1.2, 0)))
    return Panel(
        title_of(metric),
        Axis("K, steps with a gradient", at=tuple(sorted(set(ks.values())))),
        axis_of(metric, group.phase, scale, [*stats.values(), *([level] if level else [])]),
        tuple(lines),
    )


# NVML over time ---------------------------------------------------------------------------------


def timelines(group: Group, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Method → NVML samples of its first finished cell that has any; one NVML scope only."""
    timelines: dict[str, pd.DataFrame] = {}
    for result in group.finished:
        for run, cell_id in result.cells:
            if not runs[run].has_timeline:
                continue
            samples = runs[run].timeline
            samples = samples[samples["cell_id"] == cell_id].dropna(subset=["nvml_used_bytes", "elapsed_s"])
            if not samples.empty:
                samples = samples[samples["attempt"] == samples["attempt"].max()]
                timelines[result.method] = samples.sort_values("elapsed_s", kind="stable")
                break
    scopes = {samples["nvml_scope"].iloc[0] for samples in timelines.values()}
    scope = "process" if "process" in scopes else "device"
    return {method: s for method, s in timelines.items() if s["nvml_scope"].iloc[0] == scope}


def timeline_panels(samples: Mapping[str, pd.DataFrame]) -> list[Panel]:
    """Memory in use, and power or else utilisation, as far as it was sampled."""
    time = scale_for("s", [float(s["elapsed_s"].max()) for s in samples.values()])
    memory = scale_for("bytes", [float(s["nvml_used_bytes"].max()) for s in samples.values()])
    scope = next(iter(samples.values()))["nvml_scope"].iloc[0]
    drawn = [("Memory in use", "nvml_used_bytes", f"NVML, {scope} [{memory.unit}]", memory.factor)]
    beside = [
        ("Power", "power_w", "board power [W]", 1.0),
        ("Utilisation", "gpu_util", "GPU utilisation [%]", 0.01),
    ]
    drawn += [row for row in beside if all(s[row[1]].notna().any() for s in samples.values())][:1]
    label = f"time since the profiler started [{time.unit}]"
    panels = []
    for title, column, y_label, factor in drawn:
        lines = []
        for method, every in samples.items():
            shown = every.iloc[:: -(-len(every) // _MOST_SAMPLES)]
            xs, ys = (shown[name].to_numpy(dtype=float) for name in ("elapsed_s", column))
            lines.append(
                Line(method, xs / time.factor, ys / factor, method=method, marks="none", size=(1.1, 0))
            )
        panels.append(Panel(title, Axis(label), Axis(y_label, from_zero=True), tuple(lines)))
    return panels
