"""Sections on tuning: what was chosen from which trials, and what an untuned comparison loses."""

from collections.abc import Sequence
from typing import Any

from sltt_bench.common.format import DASH, counted
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
from sltt_bench.report.fields import axis_words
from sltt_bench.report.groups import Group
from sltt_bench.report.plots.lines import PERCENT, Axis, Line, Panel, draw_lines
from sltt_bench.report.sections.cells import EMPTY, percent_cell, plain_cell, word_column
from sltt_bench.report.sections.targets import target_sections, targets_frame
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
    sections += target_sections([group for group in groups if not group.key.smoke])
    rows = context.results.rows(TUNING_FILE)
    frames = {TUNING_FILE: rows.drop(columns=["run", "line"], errors="ignore")} if len(rows) else {}
    if len(targets := targets_frame(groups)):
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
    if panels := search_panels(study):
        caption = (
            f"Validation accuracy after the last epoch of each trial. Dots: trials. Lines: means over seeds. Rings: what "
            f"was chosen. Dotted: the recipe's own value. A setting that lost a trial has no point. Tuned, "
            f"{study.budget}; {', '.join(study.conditions)}."
        )
        title = "Accuracy against what was searched"
        blocks.insert(0, Figure(f"{name}-search", title, caption, draw_lines, lambda: panels))
    after = list(trained_after(study, groups))
    held_back = any(group.settings.get("validation.share") for group in after)
    data = "the training data that the recipe's validation leaves" if held_back else "all training data"
    lead = (
        f"{', '.join(study.fields)}: {counted(study.trials, 'trial')} of each method on the same grid, with part of the training data held back. "
        f"Validation accuracy alone decides; the methods are then trained on {data} with other seeds.",
    )
    blocks += [_loss(group, groups, f"{name}-loss-{place}") for place, group in enumerate(after, start=1)]
    title = f"Tuning {study.title}, {study.budget}"
    return Section(name, title, tuple(blocks), lead, chips=study.conditions, page=study.recipe)


def _choices(study: TuningStudy, name: str) -> Table:
    headings = (
        Heading("method", numeric=False), Heading("chosen", numeric=False), Heading("validation top-1", "%"),
        Heading("at the recipe's", "%"), Heading("lost trials"), Heading("at the grid's edge", numeric=False),
    )  # fmt: skip
    chosen = {method: study.chosen(method) for method in study.methods}
    rows = []
    for method, settings in study.methods.items():
        best, lost = chosen[method], sum(tried.lost for tried in settings)
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
    edge = [method for method, best in chosen.items() if best and best.at_edge]
    done = {name: sum(len(t.top1) + t.lost for t in settings) for name, settings in study.methods.items()}
    part = [method for method, trials in done.items() if trials < study.trials]
    none = [method for method, best in chosen.items() if best is None and method not in part]
    trials = counted(study.trials, "trial")
    remarks = {
        "the best value is at the edge of the grid; a better one may lie beyond it": edge,
        f"some of the {trials} are not recorded, since the command was cut off; tune with --resume completes them": part,
        "tuned in several runs; shown is the newest that has all trials": study.again,
        "every setting diverged or ran out of memory; nothing was chosen": none,
    }
    notes = [
        "Chosen: the setting with the best mean over seeds; of equal ones the nearest to the middle of the grid, then the first.",
        *(f"{numbers.listed(methods)}: {remark}." for remark, methods in remarks.items() if methods),
    ]
    return Table(f"{name}-choices", f"What was chosen, {study.budget}", headings, tuple(rows), tuple(notes))


def search_panels(study: TuningStudy) -> list[Panel]:
    """A panel for each searched field that is a number: means as lines, trials as dots, a ring around what was chosen.

    Where several fields were searched, a point of a line is the best over the others.
    """
    every = [tried for of in study.methods.values() for tried in of]
    of_seeds = numbers.of_single_seeds(len(tried.top1) for tried in every if tried.mean is not None)
    panels = []
    for name in study.fields:
        values = {tried.setting[name] for tried in every}
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            own, words = study.as_recipe, axis_words(name)
            across = Axis(words, at=tuple(sorted(values)), marked=None if own is None else float(own[name]))
            lines = tuple(_search_line(method, settings, name) for method, settings in study.methods.items())
            up = Axis("validation top-1 [%]", within=PERCENT, seeds=of_seeds)
            panels.append(Panel(f"Accuracy against {words}", across, up, lines))
    return panels


def _search_line(method: str, settings: Sequence[TriedSetting], name: str) -> Line:
    """Of several settings with one value of the field the best; the chosen one if it is among them."""
    best: dict[Any, tuple[bool, float, TriedSetting]] = {}
    for tried in settings:
        known = best.get(tried.setting[name])
        if (mean := tried.mean) is not None and (known is None or (tried.chosen, mean) > known[:2]):
            best[tried.setting[name]] = tried.chosen, mean, tried
    points = [(value, 100 * mean, tried) for value, (_, mean, tried) in sorted(best.items())]
    return Line(
        method,
        [value for value, *_ in points],
        [mean for _, mean, _ in points],
        method=method,
        dots=[
            (value, 100 * top1) for value, _, tried in points for top1 in tried.top1 if len(tried.top1) > 1
        ],
        ringed=[(value, mean) for value, mean, tried in points if tried.chosen],
    )


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
        "Test accuracy after the last epoch, mean over seeds. Each column is a comparison of its own: compare and rank methods "
        "within a column only.",
        _order_note(gained),
    ]
    if n := {gain.difference.n for gain in gained if gain.difference}:
        seeds = "–".join(map(str, sorted({min(n), max(n)})))
        notes.append(f"[ ]: 95 % t interval over {seeds} seeds that both sides share.")
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
        return "Tuning does not change the ranking of the methods."
    changes = [f"{gain.method} from {gain.untuned_rank} to {gain.tuned_rank}" for gain in moved]
    return f"Tuning changes the ranking: {numbers.listed(changes)}."
