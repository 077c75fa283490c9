"""Comparison tables of a group of cells, and the table that closes a run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from sltt_bench.report import numbers
from sltt_bench.report.document import Cell, Heading, Table, Tone
from sltt_bench.report.groups import (
    COLD_FIGURES,
    MEMORY_FIGURES,
    METRICS,
    Group,
    MethodResult,
    NotComparable,
    make_groups,
)
from sltt_bench.report.numbers import DASH
from sltt_bench.report.statistics import Estimate, pareto_front

EMPTY = Cell(DASH, tone="muted")


def overview(group: Group, baseline: str) -> Table:
    """The answer in one table: accuracy, epoch time and headline memory of each method, with ratios."""
    memory = group.headline_memory()
    columns = [_method_column(), _seeds_column(group)]
    if any(result.stat("last_test_top1") for result in group.finished):
        columns.append(_value_column(group, "last_test_top1", "top-1, last epoch"))
        if _can_compare(group, baseline):
            columns.append(_difference_column(group, "last_test_top1", baseline))
        columns.append(_value_column(group, "best_test_top1", "best epoch"))
    columns += _with_ratio(group, "epoch_s", f"{group.phase} epoch", baseline)
    if memory:
        columns += _with_ratio(group, memory, METRICS[memory].label, baseline)
    if front := pareto_members(group):
        columns.append(_pareto_column(front))
    compared = ["epoch_s", *([memory] if memory else [])]
    notes = [*_failure_notes(group), *_ratio_notes(group, baseline, compared)]
    return _table(group, "overview", "Accuracy, time and memory", columns, notes)


def every_figure(group: Group, baseline: str) -> Table:
    """One row for each measured figure, under its own name and in its own unit; a column for each method."""
    methods = list(group.methods)
    has_baseline = _can_compare(group, baseline)
    headings = [Heading("figure", numeric=False), *(Heading(method) for method in methods)]
    rows = []
    for name in _FIGURES:
        if _measured(group, name):
            label = METRICS[name].label
            if METRICS[name].of_phase:
                label = f"{label}, {group.phase} epochs"
            cells = [_figure_cell(group, name, method, baseline, has_baseline) for method in methods]
            rows.append((Cell(label, value=label), *cells))
    notes = ["Memory: peak while training. Its figures count different things and are never mixed."]
    if has_baseline:
        notes.append(f"×: ratio to {baseline} over paired seeds.")
    return Table("every-figure", "Every figure", tuple(headings), tuple(rows), tuple(notes), secondary=True)


_FIGURES = (
    *MEMORY_FIGURES,
    "epoch_s",
    "data_wait_s",
    "eval_s",
    "samples_per_s",
    "energy_j",
    "gpu_util",
    "firing_rate",
    "wall_s",
    "parameters",
)
_WITHOUT_RATIO = ("data_wait_s", "gpu_util", "firing_rate", "parameters", "wall_s")


def _figure_cell(group: Group, name: str, method: str, baseline: str, has_baseline: bool) -> Cell:
    result = group.methods[method]
    stat = result.stat(name)
    if stat is None:
        return _absent(result)
    text = numbers.scale_for(METRICS[name].unit, [stat.mean]).text(stat.mean)
    if not has_baseline or method == baseline or name in _WITHOUT_RATIO:
        return Cell(text, value=stat.mean)
    compared = ratio_cell(group.ratio(name, method, baseline), METRICS[name].better)
    return Cell(text, compared.text, stat.mean, compared.tone)


def pareto_members(group: Group) -> set[str]:
    """Methods that no other beats in accuracy, memory and time at once; empty below two methods.

    Without accuracy (random data) the front is that of memory and time. Means over seeds decide.
    """
    memory = group.headline_memory()
    results = group.finished
    if memory is None or len(results) < 2 or len({result.phase for result in results}) > 1:
        return set()
    signs = {memory: 1, "epoch_s": 1}
    if any(result.stat("last_test_top1") for result in results):
        signs["last_test_top1"] = -1
    points = {}
    for result in results:
        stats = [(result.stat(name), sign) for name, sign in signs.items()]
        if any(stat is None for stat, _ in stats):
            return set()
        points[result.method] = [sign * stat.mean for stat, sign in stats if stat is not None]
    return pareto_front(points)


# Columns ----------------------------------------------------------------------------------------

_Column = tuple[Heading, Callable[[MethodResult], Cell]]


def _table(
    group: Group,
    name: str,
    title: str,
    columns: Sequence[_Column],
    notes: Sequence[str],
) -> Table:
    return Table(
        name=name,
        title=title,
        headings=tuple(heading for heading, _ in columns),
        rows=tuple(tuple(cell(result) for _, cell in columns) for result in group.methods.values()),
        notes=tuple(dict.fromkeys(notes)),
    )


def _method_column() -> _Column:
    return Heading("method", numeric=False), lambda result: Cell(result.method, value=result.method)


def _seeds_column(group: Group) -> _Column:
    def cell(result: MethodResult) -> Cell:
        n, failed = len(result.seeds), {seed for failure in result.failures for seed in failure.seeds}
        repeated = f"{result.finished} runs" if result.finished > n else ""
        if failed:
            return Cell(f"{n} of {len(failed.union(result.seeds))}", repeated, n, "bad")
        return Cell(str(n), repeated, n)

    return Heading("seeds"), cell


def _value_column(group: Group, metric: str, label: str) -> _Column:
    stats = [stat for result in group.finished if (stat := result.stat(metric))]
    scale = numbers.scale_of_metric(metric, [stat.mean for stat in stats])

    def cell(result: MethodResult) -> Cell:
        stat = result.stat(metric)
        if stat is None:
            return _absent(result)
        if METRICS[metric].unit == "accuracy":
            spread = "" if stat.std is None else f"± {numbers.percent(stat.std)}"
            return Cell(numbers.percent(stat.mean), spread, stat.mean)
        return Cell(*scale.mean(stat), stat.mean)

    return Heading(label, scale.unit), cell


def _absent(result: MethodResult) -> Cell:
    return Cell(result.failures[0].status, tone="bad") if not result.finished and result.failures else EMPTY


def _with_ratio(group: Group, metric: str, label: str, baseline: str) -> list[_Column]:
    value = _value_column(group, metric, label)
    return [value, _ratio_column(group, metric, baseline)] if _can_compare(group, baseline) else [value]


def _can_compare(group: Group, baseline: str) -> bool:
    """Whether some method can have a ratio: the baseline finished."""
    return baseline in group.methods and group.methods[baseline].finished > 0


def _ratio_column(group: Group, metric: str, baseline: str) -> _Column:
    def cell(result: MethodResult) -> Cell:
        return ratio_cell(
            group.ratio(metric, result.method, baseline), METRICS[metric].better, result.method == baseline
        )

    return Heading(f"÷ {baseline}"), cell


def ratio_cell(estimate: Estimate | NotComparable, better: str, is_baseline: bool = False) -> Cell:
    """A ratio with its interval, coloured where the interval excludes 1."""
    if isinstance(estimate, NotComparable):
        return Cell("not comparable", tone="muted")
    if is_baseline:
        return Cell("1", value=1.0, tone="muted")
    tone: Tone = "plain"
    if numbers.excludes(estimate, 1.0):
        tone = "good" if (estimate.value < 1) == (better == "lower") else "bad"
    interval = numbers.ratio_interval(estimate.interval)
    return Cell(numbers.ratio(estimate.value), interval, estimate.value, tone)


def _difference_column(group: Group, metric: str, baseline: str) -> _Column:
    def cell(result: MethodResult) -> Cell:
        estimate = group.difference(metric, result.method, baseline)
        if isinstance(estimate, NotComparable):
            return Cell("not comparable", tone="muted")
        if result.method == baseline:
            return Cell("0", value=0.0, tone="muted")
        tone: Tone = "plain"
        if numbers.excludes(estimate, 0.0):
            tone = "good" if estimate.value > 0 else "bad"
        interval = numbers.points_interval(estimate.interval)
        return Cell(numbers.points(estimate.value), interval, estimate.value, tone)

    return Heading(f"− {baseline}", "points"), cell


def _pareto_column(front: set[str]) -> _Column:
    def cell(result: MethodResult) -> Cell:
        if not result.finished:
            return EMPTY
        on_front = result.method in front
        return Cell("on the front" if on_front else "dominated", value=float(not on_front))

    return Heading("Pareto", numeric=False), cell


# Notes ------------------------------------------------------------------------------------------


def _measured(group: Group, metric: str) -> bool:
    return any(result.values.get(metric) for result in group.finished)


def _failure_notes(group: Group) -> list[str]:
    notes = [f"{r.method}: {r.failure_text}" for r in group.methods.values() if r.failures]
    if any(r.stat("best_test_top1") for r in group.finished):
        notes.append("Best-epoch accuracy is chosen on test data; the last epoch's is not.")
    elif group.key.synthetic:
        notes.append("Random data: memory and time mean something, accuracy does not and is left empty.")
    if group.phase == "cold" and group.finished:
        notes.append("Only cold epochs were run: times include warm-up. More epochs give warm ones.")
    return [*notes, *(f"Note: {note}." for note in group.notes)]


def _ratio_notes(group: Group, baseline: str, metrics: Sequence[str]) -> list[str]:
    if baseline not in group.methods:
        return [f"No ratios: no {baseline} in this group."]
    refused: dict[str, list[str]] = {}
    unpaired: list[str] = []
    estimates = []
    for method, metric in product(group.methods, metrics):
        if method == baseline:
            continue
        estimate = group.ratio(metric, method, baseline)
        if isinstance(estimate, Estimate):
            estimates.append(estimate)
            unpaired += _moment_notes(group, metric, method, baseline)
            if set(group.methods[method].seeds) != set(group.methods[baseline].seeds):
                unpaired.append(
                    f"Ratios of {method} use only the seeds it shares with {baseline}: {estimate.n}."
                )
        elif method not in refused.setdefault(estimate.reason, []):
            refused[estimate.reason].append(method)
    notes = [
        f"{', '.join(methods)}: not comparable with {baseline}: {reason}."
        for reason, methods in refused.items()
    ]
    return [*notes, *unpaired, *_spread_notes(estimates)]


def _moment_notes(group: Group, metric: str, method: str, baseline: str) -> list[str]:
    """What to know of a ratio of times where there are several runs."""
    if not METRICS[metric].of_the_moment:
        return []
    ours, theirs = (set(group.methods[name].by_run.get(metric, {})) for name in (method, baseline))
    together = {seed for _, seed in ours & theirs}
    apart = {seed for _, seed in ours} & {seed for _, seed in theirs} - together
    notes = []
    if any(seed in together for _, seed in ours ^ theirs):
        notes.append("Ratios of times set cells of the same run side by side; the means are over all runs.")
    if apart:
        notes.append(
            f"{method} and {baseline} were timed in different runs: their ratio holds if the machine was as "
            "fast and as free in both."
        )
    return notes


def _spread_notes(estimates: Sequence[Estimate]) -> list[str]:
    if any(estimate.interval for estimate in estimates):
        return [
            "±: standard deviation over seeds. [ ]: 95 % bootstrap interval over paired seeds, "
            "left out where it is narrower than the last digit."
        ]
    return ["n = 1 seed: no spread, no interval."] if estimates else []


# Backends ---------------------------------------------------------------------------------------


def backend_tables(groups: Sequence[Group]) -> list[Table]:
    """For each method that ran on several backends under else equal conditions: the backends compared."""
    tables = []
    for same in _alike_but_for_backend(groups):
        methods = {method for group in same for method in group.methods}
        for method in sorted(methods):
            rows = [group for group in same if method in group.methods]
            if len(rows) > 1:
                tables.append(_backend_table(method, rows))
    return tables


def _alike_but_for_backend(groups: Sequence[Group]) -> list[list[Group]]:
    families: dict[Any, list[Group]] = {}
    for group in groups:
        said = {**vars(group.key), "backend": ""}
        families.setdefault(tuple(said.values()), []).append(group)
    return [family for family in families.values() if len(family) > 1]


def _backend_table(method: str, groups: Sequence[Group]) -> Table:
    """The methods' table with backends in place of methods: a group of its own, of one method."""
    first = groups[0]
    by_backend = {
        group.key.backend: _renamed(group.methods[method], group.key.backend)
        for group in sorted(groups, key=lambda group: group.key.backend != "reference")
    }
    merged = Group(
        key=first.key,
        methods=by_backend,
        recipe=first.recipe,
        overrides=first.overrides,
        runs=tuple(sorted({run for group in groups for run in group.runs})),
        on_gpu=first.on_gpu,
    )
    baseline = next(iter(by_backend))
    table = overview(merged, baseline)
    headings = (Heading("backend", numeric=False), *table.headings[1:])
    conditions = [word for word in first.key.conditions() if not word.startswith("backend ")]
    title = f"Backends, method {method} ({', '.join(conditions)})"
    return Table(f"{first.key.slug()}-backends-{method}", title, headings, table.rows, table.notes)


def _renamed(result: MethodResult, name: str) -> MethodResult:
    return replace(result, method=name)


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


def _smoke_row(group: Group) -> tuple[Cell, ...]:
    key = group.key
    failed = ", ".join(
        f"{result.method} ({failure.status})"
        for result in group.methods.values()
        for failure in result.failures
    )
    finished = ", ".join(result.method for result in group.finished)
    return (
        Cell(key.recipe, value=key.recipe),
        Cell(str(key.timesteps), value=key.timesteps),
        Cell(str(key.batch_size), value=key.batch_size),
        Cell(finished or DASH, value=finished),
        Cell(failed or DASH, value=failed, tone="bad" if failed else "muted"),
        Cell("random" if key.synthetic else "real", value=str(key.synthetic)),
        Cell(", ".join([key.hardware, key.precision, key.backend]), value=key.hardware),
    )


# For readers with other tools -------------------------------------------------------------------


def summary_frame(groups: Sequence[Group], baseline: str) -> pd.DataFrame:
    """summary.csv: one row for each group and method, in base units, ratios with their intervals."""
    return pd.DataFrame(
        [_summary_row(group, result, baseline) for group in groups for result in group.methods.values()]
    )


def _summary_row(group: Group, result: MethodResult, baseline: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        **vars(group.key),
        "overrides": " ".join(f"{key}={value}" for key, value in group.overrides.items()),
        "method": result.method,
        "seeds": len(result.seeds),
        "finished_cells": result.finished,
        "failed_cells": sum(failure.cells for failure in result.failures),
        "failures": result.failure_text,
        "epochs_used": result.phase if result.finished else "",
        "headline_memory": group.headline_memory() or "",
        "baseline": baseline,
    }
    for name, metric in METRICS.items():
        stat = result.stat(name)
        row[f"{name}_mean"] = stat and stat.mean
        row[f"{name}_std"] = stat and stat.std
        if metric.unit in ("bytes", "s", "per_s", "J") and name != "wall_s":
            row |= _estimate_columns(f"{name}_ratio", group.ratio(name, result.method, baseline))
    row |= _estimate_columns(
        "last_test_top1_minus", group.difference("last_test_top1", result.method, baseline)
    )
    for name in COLD_FIGURES:
        stat = result.stat(name)
        row[f"{name}_mean"] = stat and stat.mean
    front = pareto_members(group)
    row["pareto"] = result.method in front if front and result.finished else None
    return row


def _estimate_columns(name: str, estimate: Estimate | NotComparable) -> dict[str, Any]:
    if isinstance(estimate, NotComparable):
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0}
    interval = estimate.interval
    return {
        name: estimate.value,
        f"{name}_low": interval and interval.low,
        f"{name}_high": interval and interval.high,
        f"{name}_n": estimate.n,
    }


# After a run ------------------------------------------------------------------------------------


def run_summary(folders: Sequence[Path], *, console: Console, baseline: str = "bptt") -> None:
    """Print what a run's folders say: accuracy, warm epoch time and every memory figure, with ratios."""
    from sltt_bench.report.render.terminal import print_table
    from sltt_bench.results.reader import read_results

    groups = make_groups(read_results(folders))
    for group in groups:
        console.print()
        console.print(
            f"[bold]{escape(group.key.recipe)}[/bold]  [dim]{escape(' · '.join(group.key.conditions()))}[/dim]"
        )
        print_table(overview(group, baseline), console)
        if group.finished:
            print_table(every_figure(group, baseline), console)
    for table in backend_tables(groups):
        print_table(table, console)
