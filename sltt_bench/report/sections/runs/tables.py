"""Comparison tables of a group of cells."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from sltt_bench.common.format import DASH, counted, scale_for, significant
from sltt_bench.report import numbers
from sltt_bench.report.document import Column, Heading, Table, TableCell, Tone, table_of
from sltt_bench.report.grouping import breaches_between
from sltt_bench.report.groups import Group, MethodResult, NotComparable
from sltt_bench.report.integrity import Breach
from sltt_bench.report.metrics import INFERENCE_FIGURES, MEMORY_FIGURES, METRICS, stat_of
from sltt_bench.report.sections.cells import EMPTY, plain_cell, word_column
from sltt_bench.report.statistics import PairedEstimate, Stat


def overview(group: Group, baseline: str, *, brief: bool = False) -> Table:
    """The answer in one table: accuracy, memory and epoch time of each method, with ratios and their n.

    `brief`: without the best epoch and the Pareto front.
    """
    memory = group.headline_memory()
    columns = [_METHOD, _SEEDS]
    if has_accuracy := measured(group, "last_test_top1"):
        columns += _with_comparison(group, "last_test_top1", "top-1, last epoch", baseline)
        if not brief:
            beside = baseline if _can_compare(group, baseline) else None
            columns.append(_value_column(group, "best_test_top1", "best epoch", beside))
    columns += _with_comparison(group, "epoch_s", f"{group.phase} epoch", baseline)
    if memory:
        columns += _with_comparison(group, memory, METRICS[memory].label, baseline)
    if not brief and (front := group.pareto_front):
        columns.append((Heading("Pareto", numeric=False), partial(_pareto_cell, front)))
    compared = [*["last_test_top1"] * has_accuracy, "epoch_s", *([memory] if memory else [])]
    doubts = (
        f"The figures of {result.method} may mean nothing: {doubt}."
        for result in group.finished
        for doubt in group.doubts_beside_chance(result.method)
    )
    notes = [*doubts, *_remarks(group, best_epoch=not brief), *_ratio_notes(group, baseline, compared)]
    if not brief and has_accuracy and group.pareto_front and group.accuracy_resolution:
        sample = significant(100 * group.accuracy_resolution, 2)
        within = f"within one test sample ({counted(sample, 'point')})"
        notes.append(f"Pareto: accuracies {within} count as equal.")
    if not brief and (scatter := _scatter_over_samples(group)):
        notes.append(
            f"Accuracies: ± and [ ] are over seeds, all on the same {round(1 / group.accuracy_resolution):,} test samples; on others an "
            f"accuracy would scatter by up to {significant(100 * scatter, 2)} points besides (binomial standard deviation)."
        )
    return table_of("overview", "Accuracy, time and memory", columns, group.methods.values(), notes)


def _scatter_over_samples(group: Group) -> float:
    """The largest standard deviation, over test samples drawn anew, of a method's accuracy p: √(p (1 − p) / samples)."""
    means = [stat.mean for result in group.finished if (stat := result.stat("last_test_top1"))]
    return max((math.sqrt(p * (1 - p) * group.accuracy_resolution) for p in means), default=0.0)


def every_figure(group: Group, baseline: str) -> Table:
    """One row for each measured figure, under its own name and in its own unit; a column for each method."""
    has_baseline, of_epochs = _can_compare(group, baseline), f", {group.phase} epochs"
    columns: list[Column[str]] = [
        word_column("figure", lambda name: METRICS[name].label + of_epochs * METRICS[name].of_phase),
        *((Heading(method), partial(_figure_cell, group, method, baseline)) for method in group.methods),
    ]
    shown = [name for name in _FIGURES if measured(group, name)]
    notes = [*_figure_notes(group), *[f"×: ratio to {baseline} over paired seeds."] * has_baseline]
    table = table_of("every-figure", "Every figure", columns, shown, notes, secondary=True)
    return replace(table, across="method")


def _figure_cell(group: Group, method: str, baseline: str, name: str) -> TableCell:
    stat = group.methods[method].stat(name)
    if stat is None or group.blocking(name, method):
        return _without_figure(group.methods[method], stat)
    text = scale_for(METRICS[name].unit, [stat.mean]).text(stat.mean)
    if not _can_compare(group, baseline) or method == baseline or not METRICS[name].compared:
        return TableCell(text, value=stat.mean)
    compared = _comparison_cell(group, name, method, baseline)
    return TableCell(text, compared.text, stat.mean, compared.tone)


_COUNTER_S, _READING_S = 0.1, 1.0
"""A GPU's energy counter moves every 20 to 100 ms; its utilisation is that of the last 1/6 to 1 s."""


def _figure_notes(group: Group) -> Iterator[str]:
    """What to know of the figures; of NVML's, what its sensors cannot tell of epochs as short as these."""
    yield "Memory: peak during training. The memory figures count different things and are never mixed."
    if measured(group, "allocated_at_reset_bytes"):
        yield (
            "Before an epoch: what the allocator had given out when its peaks were reset (weights, optimiser state, "
            "the last gradients, workspaces of libraries)."
        )
    if measured(group, "backward_passes"):
        yield "Backward passes: per training iteration, mean over all epochs."
    shortest = min((seconds for r in group.finished for seconds in r.values["epoch_s"].values()), default=0)
    if measured(group, "energy_j") and 0 < 0.05 * shortest < _COUNTER_S:
        yield (
            f"Energy: the GPU's counter moves every 20 to 100 ms, which is up to {_COUNTER_S / shortest:.0%} of the "
            "shortest epoch here; the joules are no more precise than that."
        )
    if measured(group, "gpu_util") and 0 < shortest < _READING_S:
        yield (
            "GPU utilisation: a reading averages up to a second. That is longer than the shortest epoch here, so it includes "
            "some of what came before the epoch."
        )


_FIGURES = (
    *MEMORY_FIGURES, "epoch_s", "data_wait_s", "eval_s", "samples_per_s", "energy_j", "gpu_util", "backward_passes",
    "firing_rate", "wall_s", "parameters",
)  # fmt: skip


def inference_costs(group: Group) -> Table | None:
    """What each method's trained network costs at inference, as NeuroBench counts it; None where nothing was counted.

    Operations are of one test sample over all T steps. The energy is computed from the counts, and so stands
    in no table of measured joules.
    """
    counted = [name for name in INFERENCE_FIGURES if measured(group, name)]
    if not counted:
        return None
    columns = [_METHOD, _SEEDS, *(_value_column(group, name, METRICS[name].label) for name in counted)]
    results, title = group.methods.values(), "Cost of inference"
    return table_of("inference", title, columns, results, [_OF_INFERENCE], secondary=True)


_OF_INFERENCE = (
    "Counted over the test set by NeuroBench's definitions (arXiv 2304.04640): operations of one sample over all T "
    "steps, ± standard deviation over seeds. An operation is effective where neither input nor weight is 0. It is an AC where "
    "all of a layer's input in a step of a batch is spikes; pooled or scaled spikes (those of conversion and of NF-ResNet) do "
    "not count as spikes. The energy is an estimate from these counts alone (4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate, 45 nm at 32 bits; "
    "Horowitz, ISSCC 2014), without memory, leakage and products of attention. It was not measured, and is never compared "
    "with measured joules."
)


# Columns ----------------------------------------------------------------------------------------


def _seeds_cell(result: MethodResult) -> TableCell:
    n, failed = len(result.seeds), {seed for failure in result.failures for seed in failure.seeds}
    repeated = f"{result.finished} runs" if result.finished > n else ""
    if failed:
        return TableCell(f"{n} of {len(failed.union(result.seeds))}", repeated, n, "bad")
    return TableCell(str(n), repeated, n)


_METHOD: Column[MethodResult] = word_column("method", lambda result: result.method)
_SEEDS: Column[MethodResult] = (Heading("seeds"), _seeds_cell)


def _value_column(group: Group, metric: str, label: str, baseline: str | None = None) -> Column[MethodResult]:
    """The mean of each method; beside a ratio to the baseline, over the pairs that the ratio is of."""
    paired = _values_beside(group, metric, baseline) if baseline else {}
    stats = {
        result.method: stat_of(metric, [*paired[result.method].values()])
        if result.method in paired
        else whole
        for result in group.finished
        if (whole := result.stat(metric)) is not None
    }
    scale = scale_for(METRICS[metric].unit, [stat.mean for stat in stats.values()])

    def cell(result: MethodResult) -> TableCell:
        stat = stats.get(result.method)
        if stat is None or group.blocking(metric, result.method):
            return _without_figure(result, stat)
        if METRICS[metric].unit == "accuracy":
            tone: Tone = "muted" if group.at_chance(result.method) else "plain"
            return TableCell(*numbers.accuracy_and_spread(stat), stat.mean, tone)
        return TableCell(*numbers.mean_and_spread(stat, scale), stat.mean)

    return Heading(label, scale.unit), cell


Values = Mapping[Hashable, float]
"""Pair → a method's figure in it."""


def _values_beside(group: Group, metric: str, baseline: str) -> dict[str, Values]:
    """Method → what its mean beside a ratio is of: the pairs of the ratio; the baseline's of those that all ratios share.

    Where a method shares other pairs with the baseline than these, a note gives the baseline's mean over them.
    """
    pairs = {method: group.pairs(metric, method, baseline) for method in group.methods if method != baseline}
    sides = {method: both for method, both in pairs.items() if not isinstance(both, NotComparable)}
    values = {method: own for method, (own, _) in sides.items()}
    of_baseline = [other for _, other in sides.values()]
    if of_baseline and (shared := set.intersection(*map(set, of_baseline))):
        values[baseline] = {pair: of_baseline[0][pair] for pair in shared}
    return values


def _without_figure(result: MethodResult, stat: Stat | None) -> TableCell:
    """Of a method that did not measure a figure, or whose figure contradicts another."""
    if stat is not None:
        return TableCell("contradictory", tone="bad")
    failed = not result.finished and result.failures
    return TableCell(result.failures[0].status, tone="bad") if failed else EMPTY


def _with_comparison(group: Group, metric: str, label: str, baseline: str) -> list[Column[MethodResult]]:
    """The means of a figure, and where the baseline finished what they are beside the baseline's."""
    if not _can_compare(group, baseline):
        return [_value_column(group, metric, label)]
    heading = Heading(f"÷ {baseline}") if METRICS[metric].as_ratio else Heading(f"− {baseline}", "points")
    return [
        _value_column(group, metric, label, baseline),
        (heading, lambda result: _comparison_cell(group, metric, result.method, baseline)),
    ]


def _can_compare(group: Group, baseline: str) -> bool:
    """Whether some method can have a ratio: the baseline finished."""
    return baseline in group.methods and group.methods[baseline].finished > 0


def comparison(group: Group, metric: str, method: str, baseline: str) -> PairedEstimate | NotComparable:
    """A method's figure beside the baseline's: their ratio, of accuracies their difference."""
    compare = group.ratio if METRICS[metric].as_ratio else group.difference
    return compare(metric, method, baseline)


def _comparison_cell(group: Group, metric: str, method: str, baseline: str) -> TableCell:
    """A comparison with its interval and count, coloured as far as `_tone` and the group's breaches allow."""
    estimate, as_ratio = comparison(group, metric, method, baseline), METRICS[metric].as_ratio
    if isinstance(estimate, NotComparable):
        return TableCell("not comparable", tone="muted")
    no_change = 1.0 if as_ratio else 0.0
    if method == baseline:
        return TableCell(f"{no_change:g}", value=no_change, tone="muted")
    notation = numbers.compared(metric)
    text = notation(estimate.value, no_change if as_ratio else None)
    detail = "exact" if estimate.exact else f"{notation.interval(estimate.interval)} n = {estimate.n}".strip()
    undecided = group.undecided(metric, (method, baseline))
    tone = "plain" if undecided else _tone(estimate, no_change, METRICS[metric].better)
    return TableCell(text, detail, estimate.value, tone)


def _tone(estimate: PairedEstimate, no_change: float, better: str) -> Tone:
    """Green and red only for an exact figure, or from five pairs on where the interval excludes no change."""
    if not estimate.certain or not estimate.excludes(no_change):
        return "plain"
    return "good" if (estimate.value < no_change) == (better == "lower") else "bad"


def _pareto_cell(front: set[str], result: MethodResult) -> TableCell:
    if not result.finished:
        return EMPTY
    on_front = result.method in front
    return TableCell("on the front" if on_front else "dominated", value=float(not on_front))


# Notes ------------------------------------------------------------------------------------------


def measured(group: Group, metric: str) -> bool:
    """Whether a method that finished has the figure."""
    return any(result.values.get(metric) for result in group.finished)


def _remarks(group: Group, *, best_epoch: bool) -> Iterator[str]:
    """`best_epoch`: the table has a column of it."""
    yield from (f"{r.method}: {r.failure_text}" for r in group.methods.values() if r.failures)
    if best_epoch and measured(group, "best_test_top1"):
        if group.key.validation:
            yield "The best epoch is chosen on validation data; its accuracy, like that of the last epoch, is on test data."
        else:
            yield "The best epoch is chosen on test data, so its accuracy is biased upwards; the last epoch is not chosen."
    if group.key.synthetic:
        yield "Random data: memory and time are valid; accuracy would be meaningless and is left empty."
    if group.phase == "cold" and group.finished:
        yield "Only cold epochs were run, so times include warm-up. Run more epochs to get warm ones."
    floor = numbers.percent(group.accuracy_floor or 0)
    for result in group.finished:
        if group.below_floor(result.method):
            yield f"{result.method} is at chance (at most {floor} %): it learned nothing and is on no Pareto front."
        elif result.guesses:
            yield f"{result.method} is at chance with every seed: it learned nothing and is on no Pareto front."
    if remark := group.headline_remark():
        yield f"{remark[0].upper()}{remark[1:]}."
    yield from (f"Note: {note}." for note in group.notes)


def _ratio_notes(group: Group, baseline: str, metrics: Sequence[str]) -> list[str]:
    refused: dict[str, list[str]] = {}
    beside: list[str] = []
    estimates = []
    compared: set[str] = set()
    others = [method for method in group.methods if method != baseline] if baseline in group.methods else []
    shared = {metric: _values_beside(group, metric, baseline).get(baseline, {}) for metric in metrics}
    for method, metric in product(others, metrics):
        estimate = comparison(group, metric, method, baseline)
        if isinstance(estimate, PairedEstimate):
            estimates.append(estimate)
            compared |= {method, baseline}
            beside += _pair_notes(group, metric, method, baseline, shared[metric])
        elif method not in refused.setdefault(estimate.reason, []):
            refused[estimate.reason].append(method)
    for result, metric in product(group.finished, metrics):
        if result.method not in compared:  # what stands beside no ratio is to be known all the same
            beside += [_sentence(text, group) for text in group.breaches_of(metric, (result.method,))]
    notes = [f"{', '.join(names)}: not comparable with {baseline}: {why}." for why, names in refused.items()]
    if baseline not in group.methods:
        notes = [f"No ratios: this group has no run of {baseline}."]
    stats = (result.stat(metric) for result, metric in product(group.finished, metrics))
    spread_notes = _spread_notes(estimates, repeated=any(stat and stat.n > 1 for stat in stats))
    return [*notes, *numbers.shared_notes(beside, list(group.methods)), *spread_notes]


def _pair_notes(group: Group, metric: str, method: str, baseline: str, shared: Values) -> list[str]:
    """What to know of one ratio: breaches, and the baseline's mean where it is not the one of the `shared` pairs, which
    stands in its row."""
    notes = [_sentence(text, group) for text in group.breaches_of(metric, (method, baseline))]
    pairs = group.pairs(metric, method, baseline)
    assert not isinstance(pairs, NotComparable)
    own = pairs[1]
    if shared and own.keys() != shared.keys():
        text, of_shared = (_mean_text(metric, values) for values in (own, shared))
        if text != of_shared:
            pairs_text = f"{counted(len(own), 'pair')} with {method}"
            notes.append(
                f"Over the {pairs_text}, the {METRICS[metric].label} of {baseline} is {text}, not the mean in its row."
            )
    elif len(group.methods[baseline].values[metric]) > len(
        {pair if isinstance(pair, int) else pair[1] for pair in own}  # type: ignore[index]
    ):
        pairs_text = f"the {counted(len(own), 'pair')} alone"
        notes.append(
            f"Means and ratios of {method}, and the means of {baseline} beside them, are over {pairs_text}; {baseline} has more seeds."
        )
    return notes


def _sentence(text: str, group: Group) -> str:
    """A method at its start keeps its name."""
    return f"{text}." if text.startswith(tuple(group.methods)) else f"{text[0].upper()}{text[1:]}."


def _mean_text(metric: str, values: Values) -> str:
    mean, unit = stat_of(metric, [*values.values()]).mean, METRICS[metric].unit
    return numbers.in_scale(scale_for(unit, [mean]), unit)(mean)


def _spread_notes(estimates: Sequence[PairedEstimate], *, repeated: bool) -> list[str]:
    """What stands beside means and ratios. `repeated`: whether some mean is over several seeds."""
    words = [
        f"±: standard deviation over seeds; {numbers.TIMES_OR_BY}: geometric standard deviation, of a geometric mean."
    ] * repeated
    if any(estimate.interval for estimate in estimates):
        words.append(
            "[ ]: 95 % t interval over n pairs (a pair: the same seed on both sides). The mean of ratios is geometric, "
            "their interval is computed from logarithms. Only exact figures, and those from five pairs on, are coloured."
        )
    elif any(not estimate.exact for estimate in estimates):
        words.append(
            "n = 1: a single pair has no spread and no interval, and is too little for a conclusion."
        )
    return [" ".join(words)] if words else []


# Backends ---------------------------------------------------------------------------------------


def backend_tables(groups: Sequence[Group]) -> list[Table]:
    """For each method that ran on several backends under else equal conditions: the backends compared."""
    families: dict[Any, list[Group]] = {}
    for group in groups:
        # The version of the library behind a backend is the backend's, that of plug-ins is everybody's.
        plugins = [word for word in group.key.library.split(", ") if not _is_version(word)]
        conditions = {**vars(group.key), "backend": "", "library": ", ".join(plugins)}
        families.setdefault(tuple(conditions.values()), []).append(group)
    return [
        _backend_table(method, rows)
        for same in families.values()
        for method in sorted({method for group in same for method in group.methods})
        if len(rows := [group for group in same if method in group.methods]) > 1
    ]


def _is_version(word: str) -> bool:
    """Whether it is a version alone, as that of a backend's library, and no plug-in with its name."""
    return bool(word) and word[0].isdigit() and " " not in word


def _backend_name(group: Group) -> str:
    """The backend, with the version of the library behind it: two versions are two backends."""
    return " ".join([group.key.backend, *filter(_is_version, group.key.library.split(", "))])


def _breaches_of_backends(method: str, groups: Sequence[Group]) -> Iterator[Breach]:
    """What stands beside the method on each backend, under the backend's name, and what the backends do not share."""
    results = {_backend_name(group): group.methods[method] for group in groups}
    for group in groups:
        name = _backend_name(group)
        for breach in group.breaches:
            if breach.methods == (method,):
                yield replace(breach, methods=(name,), text=breach.text.replace(method, name, 1))
    yield from breaches_between(results)


def _backend_table(method: str, groups: Sequence[Group]) -> Table:
    """The methods' table with backends in place of methods: a group of its own, of one method."""
    first = groups[0]
    by_backend = {
        _backend_name(group): replace(group.methods[method], method=_backend_name(group))
        for group in sorted(groups, key=lambda group: group.key.backend != "reference")
    }
    merged = Group(
        key=first.key,
        methods=by_backend,
        recipe=first.recipe,
        overrides=first.overrides,
        runs=tuple(sorted({run for group in groups for run in group.runs})),
        on_gpu=first.on_gpu,
        breaches=tuple(_breaches_of_backends(method, groups)),
    )
    baseline = next(iter(by_backend))
    table = overview(merged, baseline)
    headings = (Heading("backend", numeric=False), *table.headings[1:])
    conditions = [word for word in first.key.conditions() if not word.startswith("backend ")]
    title = f"Backends, method {method} ({', '.join(conditions)})"
    return replace(table, name=f"{first.key.slug()}-backends-{method}", title=title, headings=headings)


# Smoke runs -------------------------------------------------------------------------------------


def smoke_table(groups: Sequence[Group]) -> Table:
    """One row for each group of smoke runs: what ran where, what finished, and what did not and why."""
    headings = (
        Heading("recipe", numeric=False), Heading("T"), Heading("batch"), Heading("finished", numeric=False),
        Heading("did not", numeric=False), Heading("data", numeric=False), Heading("on", numeric=False),
    )  # fmt: skip
    notes = [
        f"{group.key.recipe}, {result.method}: {result.failure_text}"
        for group in groups
        for result in group.methods.values()
        if result.failures
    ]
    return Table("smoke-runs", "What ran", headings, tuple(map(_smoke_row, groups)), tuple(notes))


def _smoke_row(group: Group) -> tuple[TableCell, ...]:
    key = group.key
    failed = ", ".join(
        f"{result.method} ({failure.status})"
        for result in group.methods.values()
        for failure in result.failures
    )
    finished = ", ".join(result.method for result in group.finished)
    return (
        plain_cell(key.recipe),
        plain_cell(key.timesteps),
        plain_cell(key.batch_size),
        TableCell(finished or DASH, value=finished),
        TableCell(failed or DASH, value=failed, tone="bad" if failed else "muted"),
        TableCell("random" if key.synthetic else "real", value=str(key.synthetic)),
        TableCell(", ".join([key.hardware, key.precision, key.backend]), value=key.hardware),
    )
