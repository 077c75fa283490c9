"""Which plots the measured data support, with their captions; for the others, what would make them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from typing import TypeVar

import pandas as pd

from sltt_bench.common.format import scale_for
from sltt_bench.planning.studies import TASK, setting_words, task_name
from sltt_bench.report import numbers
from sltt_bench.report.document import Context, Figure, MissingFigure
from sltt_bench.report.groups import Group, natural_order, varied_fields, words_beside
from sltt_bench.report.metrics import METRICS
from sltt_bench.report.plots.bars import draw_bars
from sltt_bench.report.plots.dots import draw_dots
from sltt_bench.report.plots.lines import SURVIVORS, Panel, draw_lines
from sltt_bench.report.sections.runs.curves import (
    Curve,
    common_accuracy,
    curve_panels,
    curves,
    epoch_panel,
    timed_accuracies,
)
from sltt_bench.report.sections.runs.panels import (
    MOST_METHODS,
    k_panels,
    method_bars,
    pair_dots,
    shown_figures,
    steps_used,
    timeline_panels,
    timelines,
    tradeoff_panels,
)
from sltt_bench.report.sections.runs.sweeps import Sweep, find_sweeps, sweep_panels
from sltt_bench.report.sections.runs.tables import measured

Item = TypeVar("Item")

EQUAL_ACCURACIES = "; accuracies within one test sample count as equal"
MOST_PANELS = 12
"""So many small multiples a figure holds."""


def group_figures(group: Group, name: str, context: Context) -> list[Figure]:
    """The plots of one group."""
    baseline = context.baseline
    figures = [_methods(group, name, baseline)] if method_bars(group, baseline) else []
    if pair_dots(group, baseline):
        figures.append(_pairs(group, name, baseline))
    if shown := curves(group):
        figures.append(_accuracy(group, name, shown))
    if group.pareto_front:
        figures.append(_tradeoff(group, name))
    if steps_used(group):
        figures.append(_against_k(group, name))
    if samples := timelines(group, context.results.runs):
        figures.append(_timeline(group, name, samples))
    return figures


def in_a_sweep(groups: Sequence[Group]) -> list[Group]:
    """The groups with overrides that the plots across groups show, so that they need none of their own."""
    sweeps = (sweep for sweep in find_sweeps(groups) if len(sweep.groups) > 2 and sweep.metrics)
    shown = {id(group) for sweep in sweeps for group in sweep.groups.values()}
    return [group for group in groups if group.overrides and id(group) in shown]


def sweep_figures(recipe: str, groups: Sequence[Group]) -> Iterator[Figure]:
    """The plots across groups of one recipe that differ in a single field: sweeps of one field side by side."""
    varied = varied_fields([group for group in groups if not group.key.smoke])
    by_field: dict[tuple[str, tuple[str, ...]], list[Sweep]] = {}
    for sweep in find_sweeps(groups):
        if sweep.metrics:
            by_field.setdefault((sweep.field, tuple(sweep.metrics)), []).append(sweep)
    names = Counter[str]()
    for (field, metrics), sweeps in by_field.items():
        name = f"{recipe.replace('/', '-')}-sweep-{field.replace('.', '-')}"
        for page in _pages(sweeps, max(1, MOST_PANELS // len(metrics))):
            names[name] += 1
            yield _sweep(name if names[name] == 1 else f"{name}-{names[name]}", page, varied)


def _sweep(name: str, sweeps: Sequence[Sweep], varied: set[str]) -> Figure:
    """One figure of sweeps of one field; what each holds fixed stands above its panels."""
    sweeps = sorted(sweeps, key=lambda sweep: natural_order(", ".join(_held_fixed(sweep, varied))))
    fixed = [_held_fixed(sweep, varied) for sweep in sweeps]
    common = [word for word in fixed[0] if all(word in words for words in fixed)]
    titles = [", ".join(word for word in words if word not in common) for words in fixed]
    groups = [group for sweep in sweeps for group in sweep.groups.values()]
    seeds = [len(result.seeds) for group in groups for result in group.finished]
    lost = any(sweep.lost for sweep in sweeps)
    ring = "; a red ring: the method ran out of memory beyond this point" if lost else ""
    ratios = any(METRICS[metric].as_ratio for metric in sweeps[0].metrics)
    deviation = numbers.DEVIATION_OF_RATIOS if ratios else numbers.DEVIATION
    caption = (
        f"Mean over seeds against {sweeps[0].words}. Bars: {deviation}. Dots: single seeds. A gap: not run{ring}. "
        f"{_slopes(sweeps[0])}{_survivors(groups)}{numbers.seeds(seeds)} a point; {', '.join(common)}."
    )
    title = f"Against {sweeps[0].words}"
    return Figure(
        name, title, caption, draw_lines, lambda: [*chain(*map(sweep_panels, sweeps, titles, repeat(sweeps)))]
    )


def _held_fixed(sweep: Sweep, varied: set[str]) -> list[str]:
    one = next(iter(sweep.groups.values()))
    first = one.key
    fixed = [first.hardware, first.precision, f"backend {first.backend}"]
    fixed += [] if sweep.field == "timesteps" else [f"T = {first.timesteps}"]
    fixed += [] if sweep.field == "train.batch_size" else [f"batch {first.batch_size}"]
    fixed += ["synthetic data"] * first.synthetic + ["smoke run"] * first.smoke
    fixed += [] if sweep.field == "train.lr" else [first.tuning]
    others = varied - {sweep.field, "timesteps", "train.batch_size", "train.lr"}
    if task := one.overrides.get(TASK):  # its name says what else the other tasks have otherwise
        fixed.append(task_name(task))
        others &= one.overrides.keys()
    return fixed + [
        setting_words(field, one.settings[field]) for field in sorted(others) if field in one.settings
    ]


def _slopes(sweep: Sweep) -> str:
    """Sentences on how memory grows a time step, or ''."""
    slopes = sweep.slopes()
    if not slopes or sweep.memory is None:
        return ""
    texts = [
        f"{method} {'flat' if slope.flat else scale_for('bytes', [slope.per_step]).text(slope.per_step)}"
        for method, slope in slopes.items()
    ]
    memory = METRICS[sweep.memory].label
    return f"Dotted: least-squares line over T ≥ 2. One more time step adds to {memory}: {', '.join(texts)}. "


def multiples(recipe: str, groups: Sequence[Group]) -> Iterator[Figure]:
    """Accuracy by epoch of groups that have no plots of their own, as small multiples."""
    shown = [(group, own) for group in groups if (own := curves(group))]
    words = [words_beside(group, groups) for group, _ in shown]
    titles = [", ".join(word for word in own if any(word not in other for other in words)) for own in words]
    titled = [(title, group, own) for title, (group, own) in zip(titles, shown, strict=True)]
    titled.sort(key=lambda panel: natural_order(panel[0]))
    for number, page in enumerate(_pages(titled, MOST_PANELS), start=1):
        drawn = [group for _, group, _ in page]
        one = drawn[0].key
        caption = (
            "Test accuracy by epoch, one panel for each group. Lines: mean over seeds. Shaded: one standard deviation. "
            f"{_survivors(drawn)}{_counts(drawn)}; {one.hardware}, {one.precision}, backend {one.backend}."
        )
        name = f"{recipe.replace('/', '-')}-curves-{number}"
        title = "Accuracy by epoch, group by group"
        yield Figure(name, title, caption, draw_lines, partial(_epoch_panels, page))


def _epoch_panels(page: Sequence[tuple[str, Group, list[Curve]]]) -> list[Panel]:
    return [epoch_panel(shown, title) for title, _, shown in page]


def _pages(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    return [items[first : first + most] for first in range(0, len(items), most)]


def missing_figures(recipe: str, groups: Sequence[Group], drawn: Sequence[Figure]) -> list[MissingFigure]:
    """The kinds of plot that no group of the recipe supports, each with the command that would make it."""
    finished = [group for group in groups if group.finished]
    if not finished:
        return []
    methods, key = ",".join(finished[0].methods), finished[0].key
    steps, batch = key.timesteps, key.batch_size
    ks = ",".join(f"sltt-k{k}" for k in (1, 2, 4, 8) if k < steps)
    random = all(group.key.synthetic for group in finished)
    no_accuracy = "only random data was run" if random else "no run has accuracy for two epochs or more"
    wanted = {
        _ACCURACY: (no_accuracy, methods),
        _PAIRS: ("no method shares two seeds with the baseline", f"{methods} --seed 0,1,2,3,4"),
        _TRADEOFF: ("needs two finished methods", "bptt,sltt"),
        _AGAINST_T: (
            "no two groups differ in T alone",
            f"{methods} --set timesteps={','.join(map(str, sorted({1, 2, 4, 8, steps})))}",
        ),
        _AGAINST_BATCH: (
            "no two groups differ in batch size alone",
            f"{methods} --set train.batch_size={batch // 2 or 1},{batch},{2 * batch}",
        ),
        _AGAINST_K: ("needs three values of K (SLTT counts as K = T)", f"bptt,{ks},sltt"),
        _TIMELINE: ("no run sampled NVML", f"{methods}   # on a machine with an NVIDIA GPU"),
    }
    there = {_TRADEOFF if figure.title == _TRADEOFF_OF_TWO else figure.title for figure in drawn}
    there |= {_SWEPT[field] for field in _SWEPT.keys() & {sweep.field for sweep in find_sweeps(groups)}}
    if steps < 3:
        wanted.pop(_AGAINST_K)
    return [
        MissingFigure(title, reason, f"sltt-bench run {recipe} --method {how}")
        for title, (reason, how) in wanted.items()
        if title not in there
    ]


# Captions ---------------------------------------------------------------------------------------

_METHODS, _ACCURACY = "Memory and time per method", "Accuracy by epoch and by time"
_PAIRS = "Every pair beside the baseline"
_TRADEOFF_OF_TWO = "Memory and time traded off"
_TRADEOFF, _AGAINST_K, _TIMELINE = "Accuracy, memory and time traded off", "Against K", "NVML timeline"
_AGAINST_T, _AGAINST_BATCH = "Memory and time against T", "Memory and time against batch size"
_SWEPT = {"timesteps": _AGAINST_T, "train.batch_size": _AGAINST_BATCH}


def _methods(group: Group, name: str, baseline: str) -> Figure:
    figures = " and ".join(
        "time" if metric == "epoch_s" else f"peak memory ({METRICS[metric].label})"
        for metric in shown_figures(group)
        if metric != "last_test_top1"
    )
    bars = (bar for panel in method_bars(group, baseline) for bar in panel.bars)
    ratios = f" In brackets: the ratio to {baseline} over paired seeds." * any(
        "×" in bar.text for bar in bars
    )
    caption = (
        f"{figures[0].upper()}{figures[1:]} of a {group.phase} training epoch: geometric mean over seeds. Whiskers: mean ÷ and × the "
        f"geometric standard deviation. Dots: single seeds.{ratios} "
        f"{_first_methods(group)}{_basis(group)}"
    )
    return Figure(f"{name}-methods", _METHODS, caption, draw_bars, lambda: method_bars(group, baseline))


def _first_methods(group: Group) -> str:
    """That a figure leaves methods out, or ''."""
    return f"The first {MOST_METHODS} of {len(group.methods)} methods. " * (len(group.methods) > MOST_METHODS)


def _pairs(group: Group, name: str, baseline: str) -> Figure:
    caption = (
        f"Each method compared with {baseline}. Small dots: single pairs (of times one seed of one run, of all else a seed). "
        f"Large dots: their mean with its 95 % t interval. Dotted: no difference. {_first_methods(group)}{_basis(group)}"
    )
    return Figure(f"{name}-pairs", _PAIRS, caption, draw_dots, lambda: pair_dots(group, baseline))


def _accuracy(group: Group, name: str, shown: list[Curve]) -> Figure:
    floor = group.accuracy_floor
    target = common_accuracy(shown, floor)
    scale = scale_for("s", [curve.longest_s for curve in shown])
    chance = [curve.method for curve in shown if curve.at_chance]
    texts = ["Test accuracy. Lines: mean over seeds. Shaded: one standard deviation."]
    if target is not None:
        reached = numbers.first_of(
            [
                f"{curve.method} {'unknown' if math.isnan(time := curve.time_to(target)) else scale.text(time)}"
                for curve in shown
                if not curve.at_chance
            ]
        )
        seeds = "every finished seed" if any(r.failures for r in group.methods.values()) else "every seed"
        methods = "every method above chance" if chance else "every method"
        texts.append(
            f"Dotted: {numbers.percent(target)} %, the highest accuracy that {seeds} of {methods} reaches. Training time "
            f"until then (geometric mean over seeds): {reached}."
        )
    timed = len(timed_accuracies(shown, floor)) > 0
    texts += ["A curve of time to an accuracy ends where some seed never reaches it."] * timed
    if floor is not None:
        lowest = numbers.percent(floor)
        texts.append(f"Accuracies up to {lowest} % count as chance; no time to them is given.")
    texts += [f"At chance: {numbers.first_of(chance)}."] if chance else []
    caption = " ".join([*texts, _basis(group)])
    content = partial(curve_panels, shown, floor, target, scale)
    return Figure(f"{name}-accuracy", _ACCURACY, caption, draw_lines, content)


def _tradeoff(group: Group, name: str) -> Figure:
    has_accuracy = measured(group, "last_test_top1")
    over = "accuracy, memory and time" if has_accuracy else "memory and time"
    caption = (
        f"Filled: on the Pareto front of {over}; no other method is at least as good in all and better in "
        f"one (by means over seeds{EQUAL_ACCURACIES * has_accuracy}). Hollow: dominated. Thin line: the Pareto front of the "
        f"panel's two figures alone. Bars: {numbers.DEVIATION_OF_RATIOS}. Dots: single seeds. {_basis(group)}"
    )
    title = _TRADEOFF if has_accuracy else _TRADEOFF_OF_TWO
    return Figure(f"{name}-tradeoff", title, caption, draw_lines, lambda: tradeoff_panels(group))


def _against_k(group: Group, name: str) -> Figure:
    bptt = group.methods.get("bptt")
    dashed = " Dashed: BPTT." * bool(bptt and bptt.finished)
    caption = (
        f"SLTT-K for each K; SLTT is K = T = {group.key.timesteps}.{dashed} Mean over seeds. Bars: "
        f"{numbers.DEVIATION_OF_RATIOS}. Dots: single seeds. {_basis(group)}"
    )
    return Figure(f"{name}-k", _AGAINST_K, caption, draw_lines, lambda: k_panels(group))


def _timeline(group: Group, name: str, samples: Mapping[str, pd.DataFrame]) -> Figure:
    caption = (
        "Sampled by NVML from the start of the process through warm-up, training and evaluation. One cell of "
        f"each method ({', '.join(samples)}), n = 1. {', '.join(group.key.conditions())}."
    )
    return Figure(f"{name}-timeline", _TIMELINE, caption, draw_lines, lambda: timeline_panels(samples))


def _basis(group: Group) -> str:
    """Sample counts and hardware, as captions end."""
    lost = [r.method for r in group.methods.values() if r.out_of_memory and not r.finished]
    failed = f"; {numbers.listed(lost)}: out of memory" if lost else ""
    return f"{_survivors([group])}{_counts([group])}{failed}; {', '.join(group.key.conditions())}."


def _counts(groups: Sequence[Group]) -> str:
    """How many seeds stand behind each mean."""
    counts: dict[str, set[int]] = {}
    for result in (result for group in groups for result in group.finished):
        counts.setdefault(result.method, set()).add(len(result.seeds))
    everything = {n for of_method in counts.values() for n in of_method}
    if len(everything) == 1 or len(groups) > 1 or len(counts) > MOST_PANELS:
        return numbers.seeds(everything)
    return "n = " + ", ".join(f"{min(n)} ({method})" for method, n in counts.items()) + " seeds"


def _survivors(groups: Sequence[Group]) -> str:
    """What the mark beside some means says, or ''."""
    lost = any(result.lost_seeds for group in groups for result in group.finished)
    return f"{SURVIVORS}: mean of the seeds that finished; others did not. " * lost
