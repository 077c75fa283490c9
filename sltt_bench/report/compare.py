"""Two result sets side by side: better, worse, within the noise, newly failed, fixed, not comparable.

A method of set A is set against the same method of the same experiment in set B. What defines the
experiment must be equal; the circumstances (hardware, torch version, backend) may differ, but only
if each set has a single one of them, and then the table says so.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sltt_bench.printable import make_console
from sltt_bench.report import numbers
from sltt_bench.report.groups import (
    DIFFERENCE_WORDS,
    METRICS,
    Group,
    MethodResult,
    make_groups,
    method_order,
)
from sltt_bench.report.statistics import Estimate, paired_difference, paired_ratio
from sltt_bench.results.reader import read_results

Word = Literal["better", "worse", "within the noise", "newly failed", "fixed", "not comparable"]

ACCURACY_POINTS = 1.0
"""Percentage points of accuracy that count as a change."""

EXPERIMENT = ("recipe", "recipe_hash", "precision", "timesteps", "batch_size", "synthetic", "smoke")
CIRCUMSTANCES = ("hardware", "software", "backend")


@dataclass(frozen=True)
class Change:
    """What became of one figure of one method from A to B."""

    experiment: str
    """Recipe and conditions in words."""
    method: str
    metric: str
    """Column of summary.csv; "status" where a side did not finish."""
    word: Word
    a: str = ""
    b: str = ""
    change: str = ""
    """Ratio B ÷ A, or the difference in points, with its interval."""
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Every change, and what differs between the sets beside the results."""

    changes: tuple[Change, ...]
    remarks: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What is worse beyond the threshold or newly failed: these decide the exit code."""
        return tuple(change for change in self.changes if change.word in ("worse", "newly failed"))


def compare_sets(a: Path, b: Path, threshold: float, console: Console | None = None) -> Comparison:
    """Compare the results in two folders and print the table.

    `threshold` is the relative change of a memory or time figure that counts; for accuracy it is
    ACCURACY_POINTS. With several seeds the interval must exclude "no change" as well. Raises
    ResultsError if a folder cannot be read.
    """
    comparison = compare_groups(make_groups(read_results([a])), make_groups(read_results([b])), threshold)
    print_comparison(comparison, console or make_console())
    return comparison


def compare_groups(a: Sequence[Group], b: Sequence[Group], threshold: float) -> Comparison:
    """The same from groups that were read already."""
    free = [name for name in CIRCUMSTANCES if len(_values(a, name)) == 1 and len(_values(b, name)) == 1]
    matched = [*EXPERIMENT, *(name for name in CIRCUMSTANCES if name not in free)]
    left, right = _by_key(a, matched), _by_key(b, matched)
    changes: list[Change] = []
    for key in sorted(left.keys() | right.keys(), key=str):
        changes += _changes(left.get(key), right.get(key), threshold)
    return Comparison(tuple(changes), tuple(_remarks(a, b, free)))


def _values(groups: Sequence[Group], name: str) -> set[object]:
    return {getattr(group.key, name) for group in groups}


def _by_key(groups: Sequence[Group], names: Sequence[str]) -> dict[tuple[object, ...], Group]:
    return {tuple(getattr(group.key, name) for name in names): group for group in groups}


def _remarks(a: Sequence[Group], b: Sequence[Group], free: Sequence[str]) -> list[str]:
    differing = [name for name in free if _values(a, name) != _values(b, name)]
    remarks = [
        f"The sets differ in {DIFFERENCE_WORDS[name]}: {_only(a, name)} (A), {_only(b, name)} (B)."
        for name in differing
    ]
    if len(differing) > 1:
        remarks.append("A change cannot be put down to one of them alone.")
    return remarks


def _only(groups: Sequence[Group], name: str) -> object:
    return next(iter(_values(groups, name)))


# One experiment ---------------------------------------------------------------------------------


def _changes(a: Group | None, b: Group | None, threshold: float) -> list[Change]:
    present = a or b
    assert present is not None
    experiment = _experiment(present)
    if a is None or b is None:
        side = "A" if b is None else "B"
        reason = f"only in {side}: no group of the other set has the same recipe version and conditions"
        return [Change(experiment, m, "status", "not comparable", reason=reason) for m in present.methods]
    changes: list[Change] = []
    for method in sorted(a.methods.keys() | b.methods.keys(), key=method_order):
        ours, theirs = a.methods.get(method), b.methods.get(method)
        if ours is None or theirs is None:
            reason = f"only in {'A' if theirs is None else 'B'}"
            changes.append(Change(experiment, method, "status", "not comparable", reason=reason))
        elif not (ours.finished and theirs.finished):
            changes.append(_status_change(experiment, ours, theirs))
        else:
            changes += _seeds_changed(experiment, ours, theirs)
            changes += _figure_changes(experiment, (a, ours), (b, theirs), threshold)
    return changes


def _experiment(group: Group) -> str:
    words = [group.key.recipe, *group.key.conditions()[1:]]
    return ", ".join([*words, *(f"{key} = {value}" for key, value in group.overrides.items())])


def _status_change(experiment: str, a: MethodResult, b: MethodResult) -> Change:
    before, after = ("ok" if side.finished else side.failures[0].status for side in (a, b))
    word: Word = "newly failed" if a.finished else "fixed" if b.finished else "not comparable"
    reason = {"newly failed": b.failure_text, "fixed": "", "not comparable": "failed in both"}[word]
    return Change(experiment, a.method, "status", word, before, after, reason=reason)


def _seeds_changed(experiment: str, a: MethodResult, b: MethodResult) -> list[Change]:
    """Seeds that finish on one side and fail on the other, where others finish on both."""
    changes: list[Change] = []
    sides: tuple[tuple[Word, MethodResult, MethodResult], ...] = (("newly failed", a, b), ("fixed", b, a))
    for word, good, bad in sides:
        failed = {seed for failure in bad.failures for seed in failure.seeds}
        lost = sorted(set(good.seeds) & failed - set(bad.seeds))
        if lost:
            reason = f"seeds {', '.join(map(str, lost))}: {bad.failure_text}"
            changes.append(Change(experiment, a.method, "status", word, reason=reason))
    return changes


def _figure_changes(
    experiment: str, a: tuple[Group, MethodResult], b: tuple[Group, MethodResult], threshold: float
) -> list[Change]:
    memory = a[0].headline_memory([a[1].method])
    names = ["last_test_top1", "epoch_s", *([memory] if memory else []), "energy_j"]
    changes = []
    for name in names:
        ours, theirs = a[1].stat(name), b[1].stat(name)
        if ours is None and theirs is None:
            continue
        unmeasured = "" if ours and theirs else f"not measured in {'B' if ours else 'A'}"
        if not unmeasured and METRICS[name].of_phase and a[1].phase != b[1].phase:
            unmeasured = f"{a[1].phase} epochs in A, {b[1].phase} ones in B"
        if unmeasured or ours is None or theirs is None:
            changes.append(Change(experiment, a[1].method, name, "not comparable", reason=unmeasured))
        else:
            changes.append(_figure_change(experiment, name, a[1], b[1], threshold))
    return changes


def _figure_change(experiment: str, name: str, a: MethodResult, b: MethodResult, threshold: float) -> Change:
    in_points = METRICS[name].unit == "accuracy"
    compared = paired_difference if in_points else paired_ratio
    estimate = compared(b.values[name], a.values[name])
    if estimate is None:
        return Change(experiment, a.method, name, "not comparable", reason="no seed in common")
    scale = numbers.scale_of_metric(name, means := [_mean(side.values[name]) for side in (a, b)])
    if in_points:
        before, after = (f"{numbers.percent(mean)} %" for mean in means)
        shown = f"{numbers.points(estimate.value)} points {numbers.points_interval(estimate.interval)}"
        word = _word(estimate, 0.0, ACCURACY_POINTS / 100, METRICS[name].better)
    else:
        before, after = (scale.text(mean) for mean in means)
        shown = f"{numbers.ratio(estimate.value)} {numbers.ratio_interval(estimate.interval)}"
        word = _word(estimate, 1.0, threshold, METRICS[name].better)
    return Change(experiment, a.method, name, word, before, after, f"{shown.strip()}, n = {estimate.n}")


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def _word(estimate: Estimate, no_change: float, threshold: float, better: str) -> Word:
    change = estimate.value - no_change
    certain = estimate.interval is None or numbers.excludes(estimate, no_change)
    if abs(change) <= threshold or not certain:
        return "within the noise"
    return "better" if (change < 0) == (better == "lower") else "worse"


# Printing ---------------------------------------------------------------------------------------

_STYLES: dict[Word, str] = {
    "better": "green",
    "worse": "bold red",
    "within the noise": "dim",
    "newly failed": "bold red",
    "fixed": "green",
    "not comparable": "yellow",
}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """A table for each experiment, the remarks, and how often each word fell."""
    for remark in comparison.remarks:
        console.print(f"[yellow]{escape(remark)}[/yellow]", highlight=False)
    for experiment in dict.fromkeys(change.experiment for change in comparison.changes):
        console.print(_table(experiment, [c for c in comparison.changes if c.experiment == experiment]))
    counts = Counter(change.word for change in comparison.changes)
    said = ", ".join(f"{counts[word]} {word}" for word in _STYLES if counts[word])
    console.print(said or "Nothing to compare: neither folder has measured cells.", highlight=False)


def _table(experiment: str, changes: Sequence[Change]) -> Table:
    table = Table(title=escape(experiment), title_justify="left", title_style="italic")
    for heading in ("method", "figure", "A", "B", "B against A", ""):
        table.add_column(heading, justify="right" if heading in ("A", "B", "B against A") else "left")
    for change in changes:
        style = _STYLES[change.word]
        label = METRICS[change.metric].label if change.metric in METRICS else change.metric
        word = f"[{style}]{change.word}[/{style}]"
        reason = f" [dim]{escape(change.reason)}[/dim]" if change.reason else ""
        table.add_row(change.method, label, change.a, change.b, escape(change.change), word + reason)
    return table
