"""The report's part on studies: the question, one figure, one sentence with its verdict, and the limits."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sltt_bench.report.claims import judge
from sltt_bench.report.document import (
    Context,
    Contribution,
    Figure,
    Heading,
    Section,
    Table,
    TableCell,
    Verdict,
    claim_cards,
)
from sltt_bench.report.grouping import overrides_of
from sltt_bench.report.groups import TUNED, Group, flat, natural_order
from sltt_bench.report.plots.studies import Drawn, StudyLine, draw_study, family_and_number, in_order
from sltt_bench.report.statistics import stat
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import ESTIMATES_FILE, GRADIENTS_FILE
from sltt_bench.studies import TASK

OF_RUNS = {
    "test_top1": "last_test_top1",
    "epoch_s": "epoch_s",
    "peak_tensor_bytes": "peak_tensor_bytes",
    "firing_rate": "firing_rate",
}
"""A panel's measure → the metric of a run's cell."""
OF_EPOCHS = {"learning_curve": "test_top1"}
"""A panel's measure → the column of a run's epochs.csv."""
OF_ANALYSES = {"cosine": "cosine_mean", "temporal_share": "temporal_share_mean"}
"""A panel's measure → the column of gradients.csv."""
OF_ESTIMATES = {"multiplications": "epoch_multiplications", "estimated_peak_bytes": "peak_tensor_bytes"}
"""A panel's measure → the column of estimates.csv."""
MEASURES = (*OF_RUNS, *OF_EPOCHS, *OF_ANALYSES, *OF_ESTIMATES)


@dataclass(frozen=True)
class Observation:
    """One figure of one cell."""

    measure: str
    value: float
    method: str
    seed: int
    point: str
    """The cell's overrides as JSON: what it has in common with the cells of the study's point."""
    settings: Mapping[str, Any]
    """The resolved recipe with dotted keys, and of an analysis and of a learning curve the epoch."""
    layer: str = ""


def studies(context: Context) -> Contribution:
    """A section for every study that some run belongs to."""
    by_name = _studies(context.results)
    parts = [_section(name, study, context) for name, study in sorted(by_name.items(), key=_natural)]
    shown = [part for part in parts if part is not None]
    frames = [frame for _, frame in shown if not frame.empty]
    answers = [f"{section.title}: {section.lead[0]} {section.lead[1]}" for section, _ in shown]
    return Contribution(
        sections=tuple(section for section, _ in shown),
        frames={"studies.csv": pd.concat(frames, ignore_index=True)} if frames else {},
        sentence=" ".join(answers) if len(answers) <= _MOST_ANSWERS else f"{len(answers)} studies.",
    )


_MOST_ANSWERS = 3
"""Studies whose answers stand on top of the report."""


def _natural(item: tuple[str, Any]) -> list[str | int]:
    return natural_order(item[0])


def _studies(results: Results) -> dict[str, Mapping[str, Any]]:
    """Recipe → its study as the last of its runs has it."""
    names: dict[str, Mapping[str, Any]] = {}
    for run, recipe in results.cells[["run", "recipe"]].drop_duplicates().to_numpy():
        study = results.runs[int(run)].study
        if isinstance(study, dict) and study.get("figure"):
            names[str(recipe)] = study
    return names


def _section(name: str, study: Mapping[str, Any], context: Context) -> tuple[Section, pd.DataFrame] | None:
    groups, aside = _bench(name, context.groups)
    tasks = [grid.get("recipe") for grid in study.get("grids", ())]
    groups.sort(key=lambda group: tasks.index(task) if (task := group.overrides.get(TASK)) in tasks else -1)
    cells = context.results.cells
    cells = cells[cells["recipe"] == name]
    if groups:
        runs = {run for group in groups for run in group.runs}
        cells = cells[cells["run"].isin(runs) & (cells["smoke"].astype(bool) == groups[0].key.smoke)]
    observations = [*_of_runs(groups), *_beside_runs(cells, context.results)]
    if not observations:
        return None
    panels = [drawn for panel in study["figure"] if (drawn := _panel(panel, observations)).lines]
    slug = name.replace("/", "-")
    blocks: list[Figure | Table] = []
    if panels:
        caption = f"Mean over seeds, bars one standard deviation. {_basis(panels, groups, cells)}"
        blocks = [
            Figure(slug, str(study["question"]), caption, draw_study, lambda: panels),
            _table(slug, panels),
        ]
    verdicts = [verdict for verdict in judge(groups) if verdict.is_finding]
    lead = [str(study["question"]), _answer(verdicts), f"Limits: {study['limits']}"]
    lead += _gaps(cells, aside)
    section = Section(f"study-{slug}", name, tuple(blocks), tuple(lead), page=name)
    return section, _frame(name, panels)


# What was measured ------------------------------------------------------------------------------


def _bench(name: str, groups: Sequence[Group]) -> tuple[list[Group], int]:
    """The study's groups that may stand in one figure (one machine, one version, all tuned or none, full runs
    before smoke runs), those with most cells, of these the tuned and then the newest; how many others there are."""
    benches: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.key.recipe == name:
            varied = ("recipe_hash", "timesteps", "batch_size", "precision", "tuning")
            key = tuple(value for field, value in vars(group.key).items() if field not in varied)
            rule = TUNED if group.key.tuned else group.key.tuning
            benches.setdefault((group.key.smoke, group.key.synthetic, rule, *key), []).append(group)
    if not benches:
        return [], 0
    chosen = min(
        benches,
        key=lambda key: (key[:2], -_finished(benches[key]), key[2] != TUNED, -_newest(benches[key])),
    )
    return benches[chosen], sum(len(others) for key, others in benches.items() if key != chosen)


def _finished(groups: Sequence[Group]) -> int:
    return sum(result.finished for group in groups for result in group.finished)


def _newest(groups: Sequence[Group]) -> int:
    """Place of their last run among all runs, which are in the order of their start."""
    return max(run for group in groups for run in group.runs)


def _of_runs(groups: Sequence[Group]) -> Iterator[Observation]:
    for group in groups:
        point, settings = _point(group.overrides), {**group.settings, **_task(group.overrides)}
        for result in group.finished:
            for measure, metric in OF_RUNS.items():
                for seed, value in result.values.get(metric, {}).items():
                    yield Observation(measure, value, result.method, seed, point, settings)
            for measure, column in OF_EPOCHS.items():
                values = result.epochs[["epoch", "seed", column]].to_numpy(dtype=float).tolist()
                for epoch, seed, value in values:
                    if not math.isnan(value):
                        at = {**settings, "epoch": int(epoch)}
                        yield Observation(measure, value, result.method, int(seed), point, at)


def _beside_runs(cells: pd.DataFrame, results: Results) -> Iterator[Observation]:
    """What analyses and estimates found."""
    for kind, file, columns in (
        ("analysis", GRADIENTS_FILE, OF_ANALYSES),
        ("estimate", ESTIMATES_FILE, OF_ESTIMATES),
    ):
        by_cell = dict(iter(results.rows(file).groupby(_CELL, sort=False)))
        for cell in cells[(cells["kind"] == kind) & (cells["status"] == "ok")].to_dict("records"):
            overrides = overrides_of(str(cell["overrides"]))
            recipe = results.runs[int(cell["run"])].recipe_of(str(cell["cell_id"]))
            settings = {**flat(recipe), **_task(overrides)}
            own = by_cell.get(tuple(cell[key] for key in _CELL))
            for row in () if own is None else own.to_dict("records"):
                if row.get("level") == "parameter":
                    continue
                at = {**settings, "epoch": int(row["epoch"])} if "epoch" in row else settings
                layer = str(row["name"]) if row.get("level") == "layer" else ""
                about = (str(cell["method"]), int(cell["seed"]), _point(overrides), at, layer)
                for measure, column in columns.items():
                    if pd.notna(value := row[column]):
                        yield Observation(measure, float(value), *about)


_CELL = ["run", "cell_id", "attempt"]


def _task(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {TASK: overrides[TASK]} if TASK in overrides else {}


def _point(overrides: Mapping[str, Any]) -> str:
    return json.dumps(dict(overrides), sort_keys=True)


# From observations to lines ---------------------------------------------------------------------


def _panel(panel: Mapping[str, Any], observations: Sequence[Observation]) -> Drawn:
    """A panel's lines: everything that shares x and line is one point, averaged over seeds."""
    x, keys, where = str(panel["x"]), list(panel["lines"]), dict(panel["where"])
    shown = [
        each
        for each in observations
        if each.measure == panel["y"]
        and bool(each.layer) == (x == "layer")
        and all(_has(each, key, value) for key, value in where.items())
    ]
    if not {"epoch"} & {x, *keys, *where}:
        last = {each.point: each.settings.get("epoch") or 0 for each in sorted(shown, key=_epoch)}
        shown = [each for each in shown if _epoch(each) == last[each.point]]
    means = _means(observations, x) if x in MEASURES else {}
    values: dict[tuple[str, ...], dict[Any, list[float]]] = {}
    first: dict[tuple[str, ...], Observation] = {}
    for each in shown:
        place = means.get((each.method, each.point)) if x in MEASURES else _value(each, x)
        if place is None and x != "number":
            continue
        line = tuple(_word(each, key) for key in keys)
        if x == "number" and place is not None and keys == ["method"]:
            line = (_word(each, "rule"),)
        first.setdefault(line, each)
        values.setdefault(line, {}).setdefault(place, []).append(each.value)
    order = (
        list(values)
        if {"method", "rule"} & {*keys}
        else sorted(values, key=lambda line: natural_order(" ".join(line)))
    )
    lines = [
        StudyLine(
            label=", ".join(line),
            method=first[line].method if {"method", "rule"} & {*keys[:1]} else None,
            points={place: stat(list(own)) for place, own in _in_order(values[line]).items()},
        )
        for line in order
    ]
    return Drawn(str(panel["y"]), x, str(panel.get("title") or ""), tuple(lines))


def _has(observation: Observation, key: str, value: Any) -> bool:
    own = observation.method if key == "method" else observation.settings.get(key)
    return bool(own == value)


def _epoch(observation: Observation) -> int:
    return int(observation.settings.get("epoch") or 0)


def _in_order(points: Mapping[Any, list[float]]) -> dict[Any, list[float]]:
    return {place: points[place] for place in in_order(points)}


def _means(observations: Sequence[Observation], measure: str) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], list[float]] = {}
    for each in observations:
        if each.measure == measure and not each.layer:
            values.setdefault((each.method, each.point), []).append(each.value)
    return {key: sum(own) / len(own) for key, own in values.items()}


def _value(observation: Observation, key: str) -> Any:
    """Where an observation stands on an axis: None if it does not."""
    match key:
        case "number":
            return family_and_number(observation.method)[1]
        case "rule":
            return family_and_number(observation.method)[0]
        case "method" | "layer":
            return getattr(observation, key)
        case _:
            value = observation.settings.get(key)
            if key == TASK and value is not None:
                return str(value).lstrip("_")  # a base that only studies extend
            if isinstance(value, bool):
                return "on" if value else "off"
            if isinstance(value, list) and len(set(value)) == 1:
                return f"{len(value)}×{value[0]}"
            return value if value is None or isinstance(value, int | float | str) else str(value)


def _word(observation: Observation, key: str) -> str:
    value = _value(observation, key)
    if key in ("method", "rule", TASK):
        return str(value)
    name = _SYMBOLS.get(key, key.rpartition(".")[2].replace("_", " "))
    return f"{name} {value:g}".strip() if isinstance(value, float) else f"{name} {value}".strip()


_SYMBOLS = {
    "neuron.tau": "τ =",
    "timesteps": "T =",
    "neuron.surrogate_width": "width",
    "model.normalisation": "",
}
"""Recipe field → how it is called in a line's label."""


# Words ------------------------------------------------------------------------------------------


def _answer(verdicts: Sequence[Verdict]) -> str:
    """Every claim with what became of it, as one sentence."""
    cards = claim_cards(verdicts)
    if not cards:
        return "No verdict: nothing that its claims speak of was measured."
    return "; ".join(f"{card.says}: {card.word} ({card.answer})" for card in cards) + "."


def _basis(panels: Sequence[Drawn], groups: Sequence[Group], cells: pd.DataFrame) -> str:
    counts = sorted({point.n for panel in panels for line in panel.lines for point in line.points.values()})
    n = f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")
    key = groups[0].key if groups else None
    conditions = (
        [key.hardware, f"backend {key.backend}"] if key else sorted(set(cells["device_name"].astype(str)))
    )
    conditions += _rules(groups)
    smoke = ["smoke run"] if bool(cells["smoke"].astype(bool).all()) else []
    return f"{n} {'seed' if counts == [1] else 'seeds'} a point; {', '.join([*conditions, *smoke])}."


def _rules(groups: Sequence[Group]) -> list[str]:
    """Whose the settings are; of tuned points that differ in the length of a trial alone, once."""
    lengths: dict[str, list[str]] = {}
    for rule in sorted({group.key.tuning for group in groups}, key=natural_order):
        budget, _, epochs = rule.partition(" (")
        lengths.setdefault(budget, []).extend([epochs.removesuffix(" epochs)")] * bool(epochs))
    return [
        f"{budget} ({', '.join(epochs)} epochs)" if epochs else budget for budget, epochs in lengths.items()
    ]


def _gaps(cells: pd.DataFrame, aside: int) -> list[str]:
    sentences = []
    failed = cells[cells["status"] != "ok"]
    if len(failed):
        reasons = Counter(zip(failed["status"], failed["reason"], strict=True))
        words = "; ".join(f"{count} {status}: {reason}" for (status, reason), count in reasons.items())
        sentences.append(f"{len(failed)} of {len(cells)} cells did not finish: {words}.")
    if aside:
        sentences.append(
            f"Left out here: {aside} group{'s' * (aside > 1)} of the study, run on another machine, with another version or rule "
            "of tuning, or as smoke runs."
        )
    return sentences


def _table(slug: str, panels: Sequence[Drawn]) -> Table:
    rows = []
    for panel in panels:
        for line in panel.lines:
            for place, mean in line.points.items():
                text, spread = panel.text(mean)
                rows.append(
                    (
                        TableCell(panel.heading),
                        TableCell(line.label),
                        TableCell(
                            panel.place_text(place), value=place if isinstance(place, int | float) else None
                        ),
                        TableCell(text, detail=spread, value=mean.mean),
                        TableCell(str(mean.n), value=mean.n),
                    )
                )
    headings = (
        Heading("figure", numeric=False),
        Heading("line", numeric=False),
        Heading("at"),
        Heading("mean"),
        Heading("n"),
    )
    return Table(f"{slug}-numbers", "The figure in numbers", headings, tuple(rows), secondary=True)


def _frame(name: str, panels: Sequence[Drawn]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "study": name,
                "panel": panel.heading,
                "measure": panel.measure,
                "x": panel.x,
                "line": line.label,
                "at": place,
                "mean": point.mean,
                "std": point.std,
                "n": point.n,
                "at_text": panel.place_text(place),
                "text": panel.text(point)[0],
                "spread": panel.text(point)[1],
            }
            for panel in panels
            for line in panel.lines
            for place, point in line.points.items()
        ]
    )
