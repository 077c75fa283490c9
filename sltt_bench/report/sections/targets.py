"""Sections on targets: when a target accuracy is reached, and how often a method is near the fastest."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import pandas as pd

from sltt_bench.common.format import scale_for, significant
from sltt_bench.report import numbers
from sltt_bench.report.document import Column, Figure, Heading, Section, Table, TableCell, table_of
from sltt_bench.report.groups import Group, in_words
from sltt_bench.report.keys import told_apart
from sltt_bench.report.plots.profile import draw_profile
from sltt_bench.report.sections.cells import percent_cell, word_column
from sltt_bench.report.targets import NEVER, Profile, ToTarget, profiles, target_of, to_target


def target_sections(groups: Sequence[Group]) -> Iterator[Section]:
    """A section for each group whose methods were on the way to a target, and one for each profile over tasks."""
    reached = [
        (number, group, ways) for number, group in enumerate(groups) if len(ways := to_target(group)) > 1
    ]
    for number, group, ways in reached:
        name = f"target-{group.key.slug()}-{number}"
        title = f"Training until {numbers.percent(target_of(group) or 0, 0)} % on {group.key.recipe}"
        apart = in_words(group, [other for _, other, _ in reached if other.key.recipe == group.key.recipe])
        yield Section(
            name, f"{title}: {apart}" if apart else title, (_target_table(group, ways, name),),
            chips=tuple(group.key.conditions()), page=group.key.recipe, folded=True,
        )  # fmt: skip
    yield from _profile_sections(profiles(groups))


def _profile_sections(own: Sequence[Profile]) -> Iterator[Section]:
    for number, profile in enumerate(own):
        name = f"profile-{'tuned' if profile.key.tuned else 'untuned'}-{number + 1}"
        figures = (_profile_figure(profile, name),) if profile.reached else ()
        blocks = (*figures, _profile_table(profile, name))
        siblings = [other for other in own if other.title == profile.title]
        alike = [other.key for other in siblings if other.conditions == profile.conditions]
        words = [word for word in profile.conditions if any(word not in o.conditions for o in siblings)]
        words += told_apart(profile.key, alike)
        title = ": ".join(filter(None, (profile.title, ", ".join(words))))
        yield Section(name, title, blocks, chips=profile.conditions, page="Over tasks")


def _target_table(group: Group, ways: Sequence[ToTarget], name: str) -> Table:
    times = scale_for("s", [way.median_s for way in ways])
    columns: list[Column[ToTarget]] = [
        word_column("method", lambda way: way.method),
        (Heading("reached"), _reached_cell),
        (Heading("epochs"), lambda way: _until(median(way.epochs), significant)),
        (Heading("training time"), lambda way: _until(way.median_s, times.text)),
    ]
    if all(way.joules for way in ways):
        joules = scale_for("J", [median(way.joules) for way in ways])
        columns.append((Heading("energy"), lambda way: _until(median(way.joules), joules.text)))
    doubts = []
    for way in ways:
        doubts += [f"{text}." for text in group.breaches_of("epoch_s", [way.method])]
        if used := way.used_by_others:
            doubts.append(f"{way.method}: until the target other programs used {used:.0%} of the processors.")
    notes = [
        f"Target: test accuracy of {numbers.percent(target_of(group) or 0, 0)} %, which the recipe states. Median over seeds of "
        "what training takes until the first epoch that reaches it. A seed that misses the target counts as infinite, and so "
        "does the median of a method if half of its seeds miss it.",
        *numbers.shared_notes(doubts, [way.method for way in ways]),
    ]
    shown = {way.method for way in ways}
    notes += [
        f"{result.method}: left out, since some of its epochs have no time (its process stood still)."
        for result in group.finished
        if result.method not in shown and result.epochs["train_s"].isna().any()
    ]
    title = f"Training until the target, {group.key.tuning}"
    return table_of(f"{name}-table", title, columns, ways, notes, secondary=True)


def _reached_cell(way: ToTarget) -> TableCell:
    missed = way.reached < len(way.epochs)
    return TableCell(
        f"{way.reached} of {len(way.epochs)}", value=way.reached, tone="bad" if missed else "plain"
    )


def _until(value: float, text: Callable[[float], str]) -> TableCell:
    return TableCell(text(value), value=value) if math.isfinite(value) else TableCell("never", tone="bad")


def _profile_figure(profile: Profile, name: str) -> Figure:
    caption = (
        f"For each factor: the share of {len(profile.tasks)} tasks ({', '.join(profile.tasks)}) on which a method's median time "
        f"to the target is at most that factor times the fastest method's. A missed target never counts. "
        f"{numbers.seeds(profile.seeds)} a method and task; {', '.join(profile.conditions)}."
    )
    return Figure(name, "Performance profile", caption, draw_profile, lambda: profile)


def _profile_table(profile: Profile, name: str) -> Table:
    def within(method: str, factor: float) -> TableCell:
        return percent_cell(profile.share(method, factor), 0)

    def ever(method: str) -> TableCell:
        return percent_cell(sum(map(math.isfinite, profile.factors[method])) / len(profile.tasks), 0)

    columns: list[Column[str]] = [
        word_column("method", str),
        *((Heading(f"within {factor:g}×", "%"), partial(within, factor=factor)) for factor in (1, 1.5, 2, 4)),
        (Heading("ever", "%"), ever),
    ]
    notes = [
        f"{len(profile.tasks)} tasks: {', '.join(profile.tasks)}; of a task with several versions, the newest counts."
    ]
    if profile.left_out:
        notes.append(f"{numbers.listed(profile.left_out)}: left out, since not run on every task.")
    return table_of(f"{name}-table", "Share of tasks", columns, profile.factors, notes, secondary=True)


def targets_frame(groups: Sequence[Group]) -> pd.DataFrame:
    """targets.csv: a row for each group and method, in base units; what was never reached is empty."""
    rows = [
        {
            **vars(group.key),
            "method": way.method,
            "target": target_of(group),
            "cells": len(way.epochs),
            "reached": way.reached,
            "median_epochs": median(way.epochs),
            "median_s": way.median_s,
            "median_j": median(way.joules) if way.joules else None,
        }
        for group in groups
        for way in to_target(group)
    ]
    return pd.DataFrame(rows).replace(NEVER, math.nan)
