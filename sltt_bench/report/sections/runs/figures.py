"""Which plots the measured data support, with their captions; for the others, what would make them."""

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd

from sltt_bench.report import numbers
from sltt_bench.report.document import Context, Figure, MissingFigure
from sltt_bench.report.groups import Group
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots import accuracy, sweeps, timeline, tradeoff
from sltt_bench.report.plots.methods import draw_methods


def group_figures(group: Group, name: str, context: Context) -> list[Figure]:
    """The plots of one group."""
    figures = [_methods(group, name, context.baseline)]
    if found := accuracy.curves(group):
        figures.append(_accuracy(group, name, found))
    if group.pareto_front:
        figures.append(_tradeoff(group, name))
    if sweeps.can_draw_k(group):
        figures.append(_against_k(group, name))
    if samples := timeline.timelines(group, context.results.runs):
        figures.append(_timeline(group, name, samples))
    return figures


def sweep_figures(recipe: str, groups: Sequence[Group]) -> Iterator[Figure]:
    """The plots across groups of one recipe that differ in a single field."""
    varied = sweeps.varied_fields([group for group in groups if not group.key.smoke])
    for number, sweep in enumerate(sweeps.find_sweeps(groups)):
        if not sweep.panels:
            continue
        words = sweeps.FIELD_WORDS.get(sweep.field, sweep.field)
        seeds = [len(r.seeds) for group in sweep.groups.values() for r in group.finished]
        n = f"n = {min(seeds)}" + (f" to {max(seeds)}" if max(seeds) > min(seeds) else "")
        one = next(iter(sweep.groups.values()))
        first = one.key
        fixed = [first.hardware, first.precision, f"backend {first.backend}"]
        fixed += [] if sweep.field == "timesteps" else [f"T = {first.timesteps}"]
        fixed += [] if sweep.field == "train.batch_size" else [f"batch {first.batch_size}"]
        fixed += ["synthetic data"] * first.synthetic + ["smoke run"] * first.smoke
        fixed += [] if sweep.field == "train.lr" else [first.tuning]
        others = varied - {sweep.field, *sweeps.FIELD_WORDS}
        fixed += [f"{field} = {one.settings[field]}" for field in sorted(others) if field in one.settings]
        lost = any(sweep.first_lost(method) is not None for method in sweep.methods)
        ring = "; a red ring: the method ran out of memory beyond this point" if lost else ""
        caption = (
            f"Mean over seeds against {words}, bars one standard deviation{ring}. "
            f"{n} seeds a point; {', '.join(fixed)}."
        )
        yield Figure(
            f"{recipe.replace('/', '-')}-sweep-{sweep.field.replace('.', '-')}-{number + 1}",
            f"Against {words}",
            caption,
            partial(sweeps.draw_sweep, sweep),
        )


def missing_figures(recipe: str, groups: Sequence[Group], drawn: Sequence[Figure]) -> list[MissingFigure]:
    """The kinds of plot that no group of the recipe supports, each with the command that would make it."""
    finished = [group for group in groups if group.finished]
    if not finished:
        return []
    group = finished[0]
    methods = ",".join(group.methods)
    run = f"sltt-bench run {recipe}"
    titles = {figure.title for figure in drawn}
    fields = {sweep.field for sweep in sweeps.find_sweeps(groups)}
    steps, batch = group.key.timesteps, group.key.batch_size
    ks = ",".join(f"sltt-k{k}" for k in _some_below(steps))
    wanted = [
        (_ACCURACY in titles, _ACCURACY, _no_accuracy(finished), f"{run} --method {methods}"),
        (_TRADEOFF in titles, _TRADEOFF, "it takes two finished methods", f"{run} --method bptt,sltt"),
        (
            "timesteps" in fields,
            "Memory and time against T",
            "no two groups differ in T alone",
            f"{run} --method {methods} --set timesteps={','.join(map(str, _around(steps)))}",
        ),
        (
            "train.batch_size" in fields,
            "Memory and time against batch size",
            "no two groups differ in batch size alone",
            f"{run} --method {methods} --set train.batch_size={batch // 2 or 1},{batch},{2 * batch}",
        ),
        (
            _AGAINST_K in titles or steps < 3,
            _AGAINST_K,
            "it takes three values of K (SLTT counts as K = T)",
            f"{run} --method bptt,{ks},sltt",
        ),
        (
            _TIMELINE in titles,
            _TIMELINE,
            "no run sampled NVML",
            f"{run} --method {methods}   # on a machine with an NVIDIA GPU",
        ),
    ]
    return [MissingFigure(title, reason, command) for there, title, reason, command in wanted if not there]


def _no_accuracy(groups: Sequence[Group]) -> str:
    if all(group.key.synthetic for group in groups):
        return "only random data was run"
    return "no run has accuracy for two epochs or more"


def _around(steps: int) -> list[int]:
    return sorted({1, 2, 4, 8, steps})


def _some_below(steps: int) -> list[int]:
    return [k for k in (1, 2, 4, 8) if k < steps]


# Captions ---------------------------------------------------------------------------------------

_METHODS, _ACCURACY = "Memory and time per method", "Accuracy by epoch and by time"
_TRADEOFF, _AGAINST_K, _TIMELINE = "Accuracy, memory and time traded off", "Against K", "NVML timeline"


def _methods(group: Group, name: str, baseline: str) -> Figure:
    memory = group.headline_memory()
    figures = f"Peak memory ({METRICS[memory].label}) and time" if memory else "Time"
    caption = (
        f"{figures} of a {group.phase} training epoch: mean over seeds, whiskers one standard deviation, "
        f"in brackets the ratio to {baseline}. {_basis(group)}"
    )
    return Figure(f"{name}-methods", _METHODS, caption, partial(draw_methods, group, baseline))


def _accuracy(group: Group, name: str, found: list[accuracy.Curve]) -> Figure:
    target = accuracy.common_accuracy(found)
    scale = numbers.scale_for("s", [float(curve.trained_s[-1]) for curve in found])
    reached = ", ".join(
        f"{curve.method} {scale.text(float(curve.trained_s[curve.first_at(target)]))}" for curve in found
    )
    caption = (
        f"Test accuracy, mean over seeds, shaded one standard deviation. Dotted: {numbers.percent(target)} %, "
        f"the highest accuracy that every method reaches; training time until then: {reached}. {_basis(group)}"
    )
    return Figure(f"{name}-accuracy", _ACCURACY, caption, partial(accuracy.draw_accuracy, found))


def _tradeoff(group: Group, name: str) -> Figure:
    has_accuracy = any(result.stat("last_test_top1") for result in group.finished)
    over = "accuracy, memory and time" if has_accuracy else "memory and time"
    caption = (
        f"Filled: on the Pareto front of {over} (no other method is at least as good in all and better in "
        f"one, by means over seeds); hollow: dominated. Dashed: the front of this panel's two figures. "
        f"Bars one standard deviation. {_basis(group)}"
    )
    return Figure(f"{name}-tradeoff", _TRADEOFF, caption, partial(tradeoff.draw_tradeoff, group))


def _against_k(group: Group, name: str) -> Figure:
    caption = (
        f"SLTT-K for each K, with SLTT as K = T = {group.key.timesteps}; dashed: BPTT. Mean over seeds, bars "
        f"one standard deviation. {_basis(group)}"
    )
    return Figure(f"{name}-k", _AGAINST_K, caption, partial(sweeps.draw_k, group))


def _timeline(group: Group, name: str, samples: dict[str, pd.DataFrame]) -> Figure:
    caption = (
        "Sampled by NVML, from the process's start through warm-up, training and evaluation; one cell of "
        f"each method ({', '.join(samples)}), n = 1. {', '.join(group.key.conditions())}."
    )
    return Figure(f"{name}-timeline", _TIMELINE, caption, partial(timeline.draw_timeline, samples))


def _basis(group: Group) -> str:
    """Sample counts and hardware, as captions end."""
    counts = {result.method: len(result.seeds) for result in group.finished}
    if len(set(counts.values())) == 1:
        said = numbers.seeds(next(iter(counts.values())))
    else:
        said = "n = " + ", ".join(f"{n} ({method})" for method, n in counts.items()) + " seeds"
    lost = [
        result.method for result in group.methods.values() if result.out_of_memory and not result.finished
    ]
    failed = f"; {numbers.listed(lost)}: out of memory" if lost else ""
    return f"{said}{failed}; {', '.join(group.key.conditions())}."
