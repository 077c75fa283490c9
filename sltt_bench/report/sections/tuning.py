"""Sections on tuning and targets: what was chosen from which trials, what an untuned comparison loses, when a
target accuracy is reached, and how often a method is near the fastest."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import pandas as pd

from sltt_bench.format import DASH, scale_for, significant
from sltt_bench.report import numbers
from sltt_bench.report.document import (
    Block,
    Column,
    Context,
    Contribution,
    Figure,
    Heading,
    MissingFigure,
    Section,
    Table,
    TableCell,
    table_of,
)
from sltt_bench.report.groups import Group, in_words
from sltt_bench.report.keys import told_apart
from sltt_bench.report.plots.tuning import draw_profile, draw_search, numeric_fields
from sltt_bench.report.sections.cells import EMPTY, percent_cell, plain_cell, word_column
from sltt_bench.report.targets import NEVER, Profile, ToTarget, profiles, target_of, to_target
from sltt_bench.report.tuning import (
    Gain,
    TriedSetting,
    TuningStudy,
    counterpart,
    gains,
    studies,
    trained_after,
)
from sltt_bench.results.schema import TUNING_FILE


def tuning(context: Context) -> Contribution:
    """Studies of `tune`, and for all measured groups whose recipe states a target the way to it."""
    tuned = studies(context.results)
    groups = context.groups
    sections = [_study_section(number, study, groups) for number, study in enumerate(tuned, start=1)]
    sections += _target_sections([group for group in groups if not group.key.smoke])
    rows = context.results.rows(TUNING_FILE)
    frames = {TUNING_FILE: rows.drop(columns=["run", "line"], errors="ignore")} if len(rows) else {}
    if len(targets := _targets_frame(groups)):
        frames["targets.csv"] = targets
    return Contribution(sections=tuple(sections), frames=frames, sentence=_sentence(tuned))


def _sentence(tuned: Sequence[TuningStudy]) -> str:
    descriptions = [
        f"{numbers.listed(list(study.methods))} on {study.title}, {study.budget}" for study in tuned
    ]
    shown, more = descriptions[:MOST_DESCRIBED], len(descriptions) - MOST_DESCRIBED
    words = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return f"Tuned on validation data with equal budgets: {words}." if descriptions else ""


MOST_DESCRIBED = 3
"""Comparisons that the first screen describes; each has a section."""


# Studies ----------------------------------------------------------------------------------------


def _study_section(number: int, study: TuningStudy, groups: Sequence[Group]) -> Section:
    name = f"tuning-{study.recipe.replace('/', '-')}-{number}"
    blocks: list[Block] = [_choices(study, name)]
    if numeric_fields(study):
        caption = (
            f"Validation accuracy after the last epoch of each trial: dots are trials, lines means over seeds, rings what "
            f"was chosen; dotted: the recipe's own value. A setting that lost a trial has no point. Tuned, "
            f"{study.budget}; {', '.join(study.conditions)}."
        )
        title = "Accuracy against what was searched"
        blocks.insert(0, Figure(f"{name}-search", title, caption, draw_search, lambda: study))
    after = list(trained_after(study, groups))
    held_back = any(group.settings.get("validation.share") for group in after)
    data = "the training data that the recipe's validation leaves" if held_back else "all training data"
    lead = (
        f"{', '.join(study.fields)}: {study.trials} trials of each method on the same grid, with part of the training data held back. "
        f"What decides is validation accuracy alone; the methods are then trained on {data} with other seeds.",
    )
    blocks += [_loss(group, groups, f"{name}-loss-{place}") for place, group in enumerate(after, start=1)]
    title = f"Tuning {study.title}, {study.budget}"
    return Section(name, title, tuple(blocks), lead, chips=study.conditions, page=study.recipe)


def _choices(study: TuningStudy, name: str) -> Table:
    headings = (
        Heading("method", numeric=False), Heading("chosen", numeric=False), Heading("validation top-1", "%"),
        Heading("at the recipe's", "%"), Heading("lost trials"), Heading("at the grid's edge", numeric=False),
    )  # fmt: skip
    rows = []
    for method, settings in study.methods.items():
        best, lost = study.chosen(method), sum(tried.lost for tried in settings)
        own = next((tried for tried in settings if tried.as_recipe), None)
        setting = best and ", ".join(f"{key} = {value}" for key, value in best.setting.items())
        rows.append(
            (
                plain_cell(method),
                plain_cell(setting) if setting else EMPTY,
                percent_cell(best.mean if best else None),
                percent_cell(own.mean if own else None),
                TableCell(str(lost), value=lost, tone="bad" if lost else "plain"),
                TableCell(", ".join(best.at_edge) if best and best.at_edge else DASH, tone="muted"),
            )
        )
    notes = [
        "Chosen: the best mean over seeds; of equal ones that nearest to the middle of the grid, then the first.",
    ]
    if edge := [method for method in study.methods if (best := study.chosen(method)) and best.at_edge]:
        notes.append(
            f"{numbers.listed(edge)}: the best value is the grid's last or first; a better one may lie beyond."
        )
    part = [method for method, settings in study.methods.items() if _trials_of(settings) < study.trials]
    if part:
        notes.append(
            f"{numbers.listed(part)}: some of the {study.trials} trials are not recorded, since the command was cut off; "
            "tune with --resume completes them."
        )
    if study.again:
        notes.append(
            f"{numbers.listed(study.again)}: tuned in several runs; shown is the newest that has all trials."
        )
    if none := [m for m in study.methods if m not in part and study.chosen(m) is None]:
        notes.append(
            f"{numbers.listed(none)}: every setting diverged or ran out of memory; nothing was chosen."
        )
    return Table(f"{name}-choices", f"What was chosen, {study.budget}", headings, tuple(rows), tuple(notes))


def _trials_of(settings: Sequence[TriedSetting]) -> int:
    return sum(len(tried.top1) + tried.lost for tried in settings)


def _loss(tuned: Group, groups: Sequence[Group], name: str) -> Block:
    """Accuracy and rank at the recipe's learning rate beside those at each method's own."""
    title = "What an untuned comparison loses"
    untuned = counterpart(tuned, groups)
    if untuned is None or not (gained := gains(tuned, untuned)):
        return MissingFigure(
            title,
            "the same methods were not run at the recipe's learning rate under the same conditions",
            f"sltt-bench run {tuned.key.recipe} --method {','.join(tuned.methods)}",
        )
    columns: list[Column[Gain]] = [
        word_column("method", lambda gain: gain.method),
        (Heading("recipe's: top-1", "%"), lambda gain: percent_cell(gain.untuned)),
        (Heading("rank"), lambda gain: plain_cell(gain.untuned_rank)),
        (Heading("tuned: top-1", "%"), lambda gain: percent_cell(gain.tuned)),
        (Heading("rank"), _rank_cell),
        (Heading("tuned − recipe's", "points"), _difference_cell),
    ]
    notes = [
        "Test accuracy after the last epoch, mean over seeds. The two columns are two comparisons: ranks and differences "
        "between methods are taken within each.",
        _order_note(gained),
    ]
    if n := {gain.difference.n for gain in gained if gain.difference}:
        notes.append(
            f"[ ]: 95 % t interval over {'–'.join(map(str, sorted({min(n), max(n)})))} seeds that both sides share."
        )
    return table_of(name, title, columns, gained, notes)


def _rank_cell(gain: Gain) -> TableCell:
    moved = gain.tuned_rank - gain.untuned_rank
    places = f"{-moved:+d}".replace("-", "−") if moved else ""
    return TableCell(str(gain.tuned_rank), places, gain.tuned_rank)


def _difference_cell(gain: Gain) -> TableCell:
    if gain.difference is None:
        return EMPTY
    detail = f"{numbers.points.interval(gain.difference.interval)} n = {gain.difference.n}".strip()
    return TableCell(numbers.points(gain.difference.value), detail, gain.difference.value)


def _order_note(gained: Sequence[Gain]) -> str:
    moved = [gain for gain in gained if gain.tuned_rank != gain.untuned_rank]
    if not moved:
        return "The order of the methods is the same."
    changes = [f"{gain.method} from {gain.untuned_rank} to {gain.tuned_rank}" for gain in moved]
    return f"Tuning changes the order: {numbers.listed(changes)}."


# Targets ----------------------------------------------------------------------------------------


def _target_sections(groups: Sequence[Group]) -> Iterator[Section]:
    reached = [
        (number, group, ways) for number, group in enumerate(groups) if len(ways := to_target(group)) > 1
    ]
    for number, group, ways in reached:
        name = f"target-{group.key.slug()}-{number}"
        title = f"Until {numbers.percent(target_of(group) or 0, 0)} % on {group.key.recipe}"
        apart = in_words(group, [other for _, other, _ in reached if other.key.recipe == group.key.recipe])
        yield Section(
            name, f"{title}: {apart}" if apart else title, (_target_table(group, ways, name),),
            chips=tuple(group.key.conditions()), page=group.key.recipe, folded=True,
        )  # fmt: skip
    yield from _profile_sections(profiles(groups))


def _profile_sections(own: Sequence[Profile]) -> Iterator[Section]:
    for number, profile in enumerate(own):
        name = f"profile-{'tuned' if profile.tuned else 'untuned'}-{number + 1}"
        blocks = (_profile_figure(profile, name), _profile_table(profile, name))
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
    notes = [
        f"Target: test accuracy of {numbers.percent(target_of(group) or 0, 0)} %, which the recipe states. Median over seeds of "
        "what training takes until the first epoch at it; a seed that misses it takes for ever, and so does the median of a "
        "method of which half the seeds do.",
        *numbers.shared_notes(
            (
                f"{text}."
                for way in ways
                for text in (*group.breaches_of("epoch_s", [way.method]), *_others(way))
            ),
            [way.method for way in ways],
        ),
    ]
    title = f"Until the target, {group.key.tuning}"
    return table_of(f"{name}-table", title, columns, ways, notes, secondary=True)


def _others(way: ToTarget) -> Iterator[str]:
    if way.used_by_others:
        yield f"{way.method}: until the target other programs used {way.used_by_others:.0%} of the processors"


def _reached_cell(way: ToTarget) -> TableCell:
    missed = way.reached < len(way.epochs)
    return TableCell(
        f"{way.reached} of {len(way.epochs)}", value=way.reached, tone="bad" if missed else "plain"
    )


def _until(value: float, text: Callable[[float], str]) -> TableCell:
    return TableCell(text(value), value=value) if math.isfinite(value) else TableCell("never", tone="bad")


def _profile_figure(profile: Profile, name: str) -> Figure:
    caption = (
        f"For each factor the share of {len(profile.tasks)} tasks ({', '.join(profile.tasks)}) on which a method's median time "
        f"to the task's target is at most so many times the fastest method's; a target that is missed is never within. "
        f"{', '.join(profile.conditions)}."
    )
    return Figure(name, "Performance profile", caption, draw_profile, lambda: profile)


def _profile_table(profile: Profile, name: str) -> Table:
    headings = (
        Heading("method", numeric=False),
        *(Heading(f"within {factor:g}×", "%") for factor in _FACTORS),
        Heading("ever", "%"),
    )
    rows = tuple(
        (
            plain_cell(method),
            *(percent_cell(profile.share(method, factor), 0) for factor in _FACTORS),
            percent_cell(sum(map(math.isfinite, factors)) / len(factors), 0),
        )
        for method, factors in profile.factors.items()
    )
    notes = [
        f"{len(profile.tasks)} tasks: {', '.join(profile.tasks)}; of several versions of one, the newest."
    ]
    if profile.left_out:
        notes.append(f"{numbers.listed(profile.left_out)}: not run on every task, so not here.")
    return Table(f"{name}-table", "Share of tasks", headings, rows, tuple(notes), secondary=True)


_FACTORS = (1, 1.5, 2, 4)


def _targets_frame(groups: Sequence[Group]) -> pd.DataFrame:
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
