"""Two result sets side by side, in a small vocabulary (`Word`), each word with one rule.

A method of set A is set against the same method of the same experiment in set B. What defines the
experiment must be equal; the circumstances (hardware, torch version, backend) may differ, but only
if each set has a single one of them, and then the table says so.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from sltt_bench.common.format import scale_for
from sltt_bench.common.printable import make_console
from sltt_bench.planning.studies import setting_words
from sltt_bench.report import numbers
from sltt_bench.report.document import Column, Heading, Table, TableCell, Tone, table_of
from sltt_bench.report.grouping import make_groups
from sltt_bench.report.groups import (
    Group,
    MethodResult,
    headline_of,
    method_order,
    seeds_text,
    settings_beside,
)
from sltt_bench.report.integrity import BEGINNINGS
from sltt_bench.report.keys import DIFFERENCE_WORDS, GroupKey, told_apart
from sltt_bench.report.metrics import METRICS, stat_of
from sltt_bench.report.render.terminal import print_table
from sltt_bench.report.statistics import ROUNDING, PairedEstimate, paired_difference, paired_ratio
from sltt_bench.results.reader import Results, print_unread, read_results
from sltt_bench.results.writer import ResultsError

Word = Literal[
    "better", "worse", "unchanged", "within the noise", "inconclusive", "n too small", "newly failed", "fixed", "not comparable",
]  # fmt: skip
"""better, worse: an exact figure at any difference; a noisy one beyond the threshold, from five pairs on, with an
interval that excludes no change. unchanged: an exact figure that is equal. within the noise: at most the threshold.
inconclusive: beyond it, but the interval contains no change, or more than 5 % of an epoch was
waiting for data, or other programs used the processors. n too small: beyond it with fewer than five pairs."""

ACCURACY_POINTS = 1.0
"""Percentage points of accuracy that count as a change."""

CIRCUMSTANCES = (
    "hardware", "software", "backend", "library", "revision", "device_memory", "driver", "cpu", "threads", "flags",
)  # fmt: skip
EXPERIMENT = tuple(field.name for field in fields(GroupKey) if field.name not in CIRCUMSTANCES)


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

    @property
    def label(self) -> str:
        """The figure as tables name it."""
        return METRICS[self.metric].label if self.metric in METRICS else self.metric


@dataclass(frozen=True)
class SetComparison:
    """Every change, and what differs between the sets beside the results."""

    changes: tuple[Change, ...]
    remarks: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What is worse beyond the threshold or newly failed: these decide the exit code."""
        return tuple(change for change in self.changes if change.word in ("worse", "newly failed"))


def compare_sets(a: Path, b: Path, threshold: float, console: Console | None = None) -> SetComparison:
    """Compare the results in two folders and print the table.

    `threshold` is the relative change of a noisy figure that counts; for accuracy it is ACCURACY_POINTS.
    Raises ResultsError if a folder cannot be read or holds no results.
    """
    one, other = _read(a), _read(b)
    comparison = compare_groups(make_groups(one), make_groups(other), threshold)
    console = console or make_console()
    print_comparison(comparison, console)
    print_unread([*one.skipped, *other.skipped], console)
    return comparison


def _read(folder: Path) -> Results:
    results = read_results([folder])
    if results.cells.empty:
        raise ResultsError(
            f"{folder}: no results in or below it{results.reasons}; give a folder with runs, for example results/"
        )
    return results


def compare_groups(a: Sequence[Group], b: Sequence[Group], threshold: float) -> SetComparison:
    """The same from groups that were read already."""
    free = [name for name in CIRCUMSTANCES if len(_values(a, name)) == 1 and len(_values(b, name)) == 1]
    matched = [*EXPERIMENT, *(name for name in CIRCUMSTANCES if name not in free)]
    left, right = _by_key(a, matched), _by_key(b, matched)
    pairs = [(left.get(key), right.get(key)) for key in sorted(left.keys() | right.keys(), key=str)]
    named = zip(_names(pairs, free), pairs, strict=True)
    changes = [change for name, pair in named for change in _changes(name, *pair, threshold)]
    return SetComparison(tuple(changes), tuple(_remarks(a, b, free)))


def _values(groups: Sequence[Group], name: str) -> set[object]:
    return {getattr(group.key, name) for group in groups}


def _by_key(groups: Sequence[Group], names: Sequence[str]) -> dict[tuple[object, ...], Group]:
    return {tuple(getattr(group.key, name) for name in names): group for group in groups}


def _remarks(a: Sequence[Group], b: Sequence[Group], free: Sequence[str]) -> list[str]:
    sides = {name: (*_values(a, name), *_values(b, name)) for name in free}
    differing = {name: values for name, values in sides.items() if values[0] != values[1]}
    remarks = [f"{letter}: {_described(groups)}" for letter, groups in (("A", a), ("B", b)) if groups]
    remarks += [
        f"The sets differ in {DIFFERENCE_WORDS[name]}: {of_a} (A), {of_b} (B)."
        for name, (of_a, of_b) in differing.items()
    ]
    if len(differing) > 1:
        remarks.append("So no change can be attributed to one of them alone.")
    return remarks


def _described(groups: Sequence[Group]) -> str:
    """What a set was measured on and with."""
    names = ("hardware", "software", "revision")
    parts = [sorted({str(getattr(group.key, name)) for group in groups}) for name in names]
    return "; ".join(", ".join(part for part in values if part) or "unknown revision" for values in parts)


# One experiment ---------------------------------------------------------------------------------


def _names(pairs: Sequence[tuple[Group | None, Group | None]], free: Sequence[str]) -> list[str]:
    """Each experiment in the words that both its groups share, no two alike. `free`: in what a pair may differ, which is
    said of the sets."""
    names, keys, settings = [], [], []
    all_groups = [group for pair in pairs for group in pair if group]
    unsaid: dict[str, Any] = dict.fromkeys(free, "")
    for a, b in pairs:
        one, other = a or b, b or a
        assert one is not None
        assert other is not None
        shared = set(other.key.conditions())
        words = [one.key.recipe, *(word for word in one.key.conditions()[1:] if word in shared)]
        words += [setting_words(key, value) for key, value in settings_beside(one, all_groups).items()]
        names.append(", ".join(words))
        keys.append(replace(one.key, **unsaid))
        settings.append(one.settings)
    if len({key.hardware for key in keys}) > 1:
        names = [f"{name}, {key.hardware}" for name, key in zip(names, keys, strict=True)]
    for name in {name for name in names if names.count(name) > 1}:
        places = [place for place, other in enumerate(names) if other == name]
        for place in places:
            alike, their_settings = [keys[other] for other in places], [settings[other] for other in places]
            names[place] = ", ".join([name, *told_apart(keys[place], alike, their_settings)])
    return names


def _changes(experiment: str, a: Group | None, b: Group | None, threshold: float) -> Iterator[Change]:
    """What became of each method of an experiment; one that only a single set holds is compared with nothing."""
    alone = "A" if b is None else "B"
    for method in sorted({*(a.methods if a else ()), *(b.methods if b else ())}, key=method_order):
        change = Change(experiment, method, "status", "not comparable")
        if a is None or b is None:
            reason = f"only in {alone}: no group of the other set has the same recipe version and conditions"
            yield replace(change, reason=reason)
            continue
        before, after = a.methods.get(method), b.methods.get(method)
        if before is None or after is None:
            yield replace(change, reason=f"only in {'A' if after is None else 'B'}")
        elif not (before.finished and after.finished):
            yield _status_change(change, before, after)
        else:
            yield from _seeds_changed(change, before, after)
            yield from _figure_changes(change, a, b, threshold)


def _status_change(change: Change, a: MethodResult, b: MethodResult) -> Change:
    before, after = ("ok" if side.finished else side.failures[0].status for side in (a, b))
    if a.finished:
        return replace(change, word="newly failed", a=before, b=after, reason=b.failure_text)
    if b.finished:
        return replace(change, word="fixed", a=before, b=after)
    return replace(change, a=before, b=after, reason="failed in both")


def _seeds_changed(change: Change, a: MethodResult, b: MethodResult) -> Iterator[Change]:
    """Seeds that finish on one side and fail on the other, where others finish on both."""
    sides: tuple[tuple[Word, MethodResult, MethodResult], ...] = (("newly failed", a, b), ("fixed", b, a))
    for word, good, bad in sides:
        failed = {seed for failure in bad.failures for seed in failure.seeds}
        lost = sorted(set(good.seeds) & failed - set(bad.seeds))
        if lost:
            yield replace(change, word=word, reason=f"{seeds_text(lost)}: {bad.failure_text}")


def _figure_changes(change: Change, a: Group, b: Group, threshold: float) -> Iterator[Change]:
    before, after = a.methods[change.method], b.methods[change.method]
    own = [group.headline_memory([change.method]) for group in (a, b)]
    memory = headline_of([a, b], [change.method]) or own[0] or own[1]
    for name in ("last_test_top1", "epoch_s", *([memory] if memory else []), "energy_j"):
        measured = [bool(side.stat(name)) for side in (before, after)]
        of_figure = replace(change, metric=name)
        breaches = {side: group.blocking(name, change.method) for side, group in (("A", a), ("B", b))}
        refused = [f"in {side}, {breach.text}" for side, breach in breaches.items() if breach is not None]
        if all(measured) and refused:
            yield replace(of_figure, reason="; ".join(refused))
        elif all(measured):
            undecided = any(group.undecided(name, (change.method,)) for group in (a, b))
            resolution = max(a.accuracy_resolution, b.accuracy_resolution)
            changed = _figure_change(of_figure, before, after, threshold, resolution, undecided=undecided)
            reasons = filter(None, [changed.reason, *_in_place_of(name, own), *_apart(name, before, after)])
            yield replace(changed, reason="; ".join(reasons))
        elif any(measured):
            yield replace(of_figure, reason=f"not measured in {'B' if measured[0] else 'A'}")


def _in_place_of(metric: str, headlines: Sequence[str | None]) -> Iterator[str]:
    """Which figure of memory a set's own report has first, where the other set lacks it. `headlines`: of A and of B."""
    if METRICS[metric].unit != "bytes":
        return
    for side, other, name in (("A", "B", headlines[0]), ("B", "A", headlines[1])):
        if name and name != metric:
            yield f"compared in place of {METRICS[name].label}, which {side} has and {other} lacks"


def _apart(metric: str, a: MethodResult, b: MethodResult) -> Iterator[str]:
    """What the two sides of a figure do not share, though the name of the method is the same."""
    for side, own, other in (("A", a, b), ("B", b, a)):
        if alone := sorted(own.values[metric].keys() - other.values[metric].keys()):
            yield f"{seeds_text(alone)} only in {side}"
    if a.plugins != b.plugins:
        sides = (f"{', '.join(side.plugins) or 'none'} ({name})" for name, side in (("A", a), ("B", b)))
        yield f"the method's plug-in is another: {', '.join(sides)}"
    if METRICS[metric].unit != "accuracy":
        return
    for text, names in BEGINNINGS.items():
        pairs = [(a.began.get(name, {}), b.began.get(name, {})) for name in names]
        unlike = {
            seed for one, other in pairs for seed in one.keys() & other.keys() if one[seed] != other[seed]
        }
        if unlike:
            yield f"{text} in A and in B ({seeds_text(sorted(unlike))}): some of the difference is chance"


def _figure_change(
    change: Change, a: MethodResult, b: MethodResult, threshold: float, resolution: float, *, undecided: bool
) -> Change:
    """`resolution`: the accuracy of one test sample. `undecided`: there is no judgement on it, since a set's figure is not its
    method's alone."""
    name, metric = change.metric, METRICS[change.metric]
    if metric.of_phase and a.phase != b.phase:
        return replace(change, reason=f"{a.phase} epochs in A, {b.phase} ones in B")
    if metric.unit == "accuracy":
        estimate = paired_difference(b.values[name], a.values[name], resolution=resolution)
    else:
        estimate = paired_ratio(b.values[name], a.values[name], exact=metric.exact)
    if estimate is None:
        return replace(change, reason="no seed in common")
    common = a.values[name].keys() & b.values[name].keys()
    means = [stat_of(name, [side.values[name][seed] for seed in common]).mean for side in (a, b)]
    before, after = map(numbers.in_scale(scale_for(metric.unit, means), metric.unit), means)
    if metric.unit == "accuracy":
        counts = max(ACCURACY_POINTS / 100, resolution)
        limits = (-counts, counts)
        shown = f"{numbers.points(estimate.value)} points {numbers.points.interval(estimate.interval)}"
        word = _word(estimate, 0.0, limits, metric.better)
    else:
        shown = f"{numbers.ratio(estimate.value, 1.0)} {numbers.ratio.interval(estimate.interval, 1.0)}"
        word = _word(estimate, 1.0, (1 / (1 + threshold), 1 + threshold), metric.better)
        if metric.exact and not estimate.exact:
            ratios = [b.values[name][seed] / a.values[name][seed] for seed in common]
            word = _word_of_counts(ratios, metric.better)
    if undecided and word in ("better", "worse"):
        word = "inconclusive"
    basis = "exact" if estimate.exact else f"n = {estimate.n}"
    return replace(change, word=word, a=before, b=after, change=f"{shown.strip()}, {basis}")


def _word(estimate: PairedEstimate, no_change: float, limits: tuple[float, float], better: str) -> Word:
    word: Word = "better" if (estimate.value < no_change) == (better == "lower") else "worse"
    if estimate.exact:
        return word if estimate.excludes(no_change) else "unchanged"
    low, high = limits
    if low - ROUNDING <= estimate.value <= high + ROUNDING:
        return "within the noise"
    if not estimate.certain:
        return "n too small"
    return word if estimate.excludes(no_change) else "inconclusive"


def _word_of_counts(ratios: Sequence[float], better: str) -> Word:
    """Of an exact figure that did not change alike in all seeds: what each of those says where it changed."""
    changes = {ratio < 1 for ratio in ratios if not math.isclose(ratio, 1, rel_tol=1e-12)}
    if len(changes) == 2:
        return "inconclusive"
    return "better" if changes == {better == "lower"} else "worse"


# Printing ---------------------------------------------------------------------------------------

_TONES: dict[Word, Tone] = {
    "better": "good",
    "worse": "bad",
    "unchanged": "muted",
    "within the noise": "muted",
    "inconclusive": "plain",
    "n too small": "plain",
    "newly failed": "bad",
    "fixed": "good",
    "not comparable": "muted",
}


def print_comparison(comparison: SetComparison, console: Console) -> None:
    """What the sets are, a table for each experiment, and last how often each word fell."""
    for remark in comparison.remarks:
        console.print(escape(remark), highlight=False)
    for number, experiment in enumerate(dict.fromkeys(change.experiment for change in comparison.changes)):
        console.print()
        changes = [change for change in comparison.changes if change.experiment == experiment]
        print_table(_table(experiment, changes, number), console)
    counts = Counter(change.word for change in comparison.changes)
    answer = ", ".join(f"{counts[word]} {word}" for word in _TONES if counts[word])
    console.print()
    console.print(answer or "Nothing to compare: no cell of kind run in either folder.", highlight=False)


def _table(experiment: str, changes: Sequence[Change], number: int) -> Table:
    columns: list[Column[Change]] = [
        (Heading("method", numeric=False), lambda change: TableCell(change.method)),
        (Heading("figure", numeric=False), lambda change: TableCell(change.label)),
        (Heading("A"), lambda change: TableCell(change.a)),
        (Heading("B"), lambda change: TableCell(change.b)),
        (Heading("B against A"), lambda change: TableCell(change.change)),
        (Heading("verdict", numeric=False), lambda change: TableCell(change.word, tone=_TONES[change.word])),
    ]
    figures: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        figures.setdefault((change.method, change.reason), []).append(change.label)
    notes = [
        f"{method}, {', '.join(labels)}: {reason}." for (method, reason), labels in figures.items() if reason
    ]
    return table_of(f"compare-{number}", experiment, columns, changes, notes)
