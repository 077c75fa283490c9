"""The report's part on studies: the question, one figure, one sentence with its verdict, and the limits."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.planning.studies import TASK, task_name
from sltt_bench.report import numbers
from sltt_bench.report.claims import judge
from sltt_bench.report.document import (
    Block,
    ClaimCard,
    Column,
    Context,
    Contribution,
    Figure,
    Heading,
    Section,
    TableCell,
    claim_cards,
    table_of,
)
from sltt_bench.report.grouping import overrides_of
from sltt_bench.report.groups import Group, flat, natural_order
from sltt_bench.report.keys import TUNED
from sltt_bench.report.metrics import compared_as_ratio, stat_of
from sltt_bench.report.plots.studies import Drawn, StudyLine, draw_study, family_and_number, in_order
from sltt_bench.report.sections.cells import plain_cell
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import ESTIMATES_FILE, GRADIENTS_FILE

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
_FIGURES = OF_RUNS | OF_EPOCHS | OF_ANALYSES | OF_ESTIMATES
MEASURES = tuple(_FIGURES)


@dataclass(frozen=True)
class Observation:
    """One figure of one cell."""

    measure: str
    value: float
    point: str
    """The cell's overrides as JSON: what it has in common with the cells of the study's point."""
    about: Mapping[str, Any]
    """The resolved recipe with dotted keys; `method`, its `rule` and its `number`; of an analysis and of a learning curve
    the `epoch`; of a layer the `layer`."""

    @property
    def epoch(self) -> int:
        """When it was looked at; 0 for what has no epochs."""
        return int(self.about.get("epoch", 0))


def studies(context: Context) -> Contribution:
    """A section for every study that some run belongs to."""
    by_name = _studies(context.results)
    parts = (_section(name, by_name[name], context) for name in sorted(by_name, key=natural_order))
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
    else:  # of a study that trains nothing, full cells before smoke ones
        smoke = cells["smoke"].astype(bool)
        cells = cells[smoke == smoke.all()]
    observations = [*_of_runs(groups), *_beside_runs(cells, context.results)]
    if not observations:
        return None
    panels = [drawn for panel in study["figure"] if (drawn := _panel(panel, observations)).lines]
    lines = [(panel, line) for panel in panels for line in panel.lines]
    points = [_row(name, panel, line, place) for panel, line in lines for place in line.points]
    slug, question = name.replace("/", "-"), str(study["question"])
    blocks: tuple[Block, ...] = ()
    if panels:
        shown = (_FIGURES.get(axis, axis) for panel in panels for axis in (panel.measure, panel.x))
        deviation = numbers.DEVIATION_OF_RATIOS if any(map(compared_as_ratio, shown)) else numbers.DEVIATION
        caption = f"Mean over seeds. Bars: {deviation}. Dots: single seeds. {_basis(panels, groups, cells)}"
        figure = Figure(slug, question, caption, draw_study, lambda: panels)
        title = "The figure in numbers"
        blocks = (figure, table_of(f"{slug}-numbers", title, _COLUMNS, points, secondary=True))
    cards = claim_cards(judge(groups))
    lead = (question, _answer(cards), f"Limits: {study['limits']}", *_gaps(cells, aside))
    return Section(f"study-{slug}", name, blocks, lead, page=name, cards=cards), pd.DataFrame(points)


# What was measured ------------------------------------------------------------------------------


def _bench(name: str, groups: Sequence[Group]) -> tuple[list[Group], int]:
    """The study's groups that may stand in one figure (one machine, one version, all tuned or none, full runs
    before smoke runs), those with most cells, of these the tuned and then the newest; how many others there are.

    Of a point that was run in several versions (of its recipe, of its tuning) the newest is taken.
    """
    benches: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.key.recipe == name:
            varied = ("recipe_hash", "timesteps", "batch_size", "precision", "tuning")
            key = tuple(value for field, value in vars(group.key).items() if field not in varied)
            rule = TUNED if group.key.tuned else group.key.tuning
            benches.setdefault((group.key.smoke, group.key.synthetic, rule, *key), []).append(group)
    if not benches:
        return [], 0

    def rank(key: tuple[Any, ...]) -> tuple[Any, ...]:
        finished = sum(result.finished for group in benches[key] for result in group.finished)
        newest = max(run for group in benches[key] for run in group.runs)  # in the order of their start
        return key[:2], -finished, key[2] != TUNED, -newest

    bench = benches[min(benches, key=rank)]
    newest_last = sorted(bench, key=lambda group: max(group.runs))
    newest = {(group.key.precision, _point(group.overrides)): group.key for group in newest_last}
    shown = [group for group in bench if group.key in newest.values()]
    return shown, sum(map(len, benches.values())) - len(shown)


def _of_runs(groups: Sequence[Group]) -> Iterator[Observation]:
    for group in groups:
        point = _point(group.overrides)
        for result in group.finished:
            about = _about(group.settings, group.overrides, result.method)
            for measure, metric in OF_RUNS.items():
                if group.blocking(metric, result.method):
                    continue
                for value in result.values.get(metric, {}).values():
                    yield Observation(measure, value, point, about)
            for measure, column in OF_EPOCHS.items():
                if group.blocking("last_test_top1", result.method):
                    continue
                known = result.epochs.dropna(subset=[column])
                of_seeds = known.groupby(["epoch", "seed"], as_index=False)[column].mean()
                for epoch, value in zip(of_seeds["epoch"], of_seeds[column], strict=True):
                    yield Observation(measure, float(value), point, {**about, "epoch": int(epoch)})


def _beside_runs(cells: pd.DataFrame, results: Results) -> Iterator[Observation]:
    """What analyses and estimates found; of what several runs looked at with one seed, what the newest saw."""
    newest: dict[tuple[Any, ...], Observation] = {}
    for kind, file, columns in (
        ("analysis", GRADIENTS_FILE, OF_ANALYSES),
        ("estimate", ESTIMATES_FILE, OF_ESTIMATES),
    ):
        of_kind = cells[(cells["kind"] == kind) & (cells["status"] == "ok")]
        rows, by_cell = results.rows(file), defaultdict(list)
        for row in rows[rows["run"].isin(of_kind["run"])].to_dict("records"):
            if row.get("level") != "parameter":
                by_cell[row["run"], row["cell_id"], row["attempt"]].append(row)
        for cell in of_kind.to_dict("records"):
            overrides = overrides_of(str(cell["overrides"]))
            recipe = results.runs[int(cell["run"])].recipe_of(str(cell["cell_id"]))
            point, about = _point(overrides), _about(flat(recipe), overrides, str(cell["method"]))
            for row in by_cell[cell["run"], cell["cell_id"], cell["attempt"]]:
                when = {"epoch": int(row["epoch"])} if "epoch" in row else {}
                where = {"layer": row["name"]} if row.get("level") == "layer" and row["name"] else {}
                for measure, column in columns.items():
                    if pd.notna(value := row[column]):
                        found = Observation(measure, float(value), point, {**about, **when, **where})
                        layer = found.about.get("layer")
                        newest[measure, point, cell["method"], cell["seed"], found.epoch, layer] = found
    yield from newest.values()


def _about(settings: Mapping[str, Any], overrides: Mapping[str, Any], method: str) -> dict[str, Any]:
    rule, number = family_and_number(method)
    task = {TASK: overrides[TASK]} if TASK in overrides else {}
    return {**settings, **task, "method": method, "rule": rule, "number": number}


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
        and ("layer" in each.about) == (x == "layer")
        and all(each.about.get(key) == value for key, value in where.items())
    ]
    if "epoch" not in {x, *keys, *where}:
        last = {each.point: each.epoch for each in sorted(shown, key=lambda each: each.epoch)}
        shown = [each for each in shown if each.epoch == last[each.point]]
    means = _means(observations, x)
    values: dict[tuple[str, ...], dict[Any, list[float]]] = {}
    methods: dict[tuple[str, ...], str] = {}
    for each in shown:
        method = each.about["method"]
        place = means.get((method, each.point)) if x in MEASURES else _value(each, x)
        if place is None and x != "number":
            continue
        line = tuple(_word(each, key) for key in keys)
        if x == "number" and place is not None and keys == ["method"]:
            line = (_word(each, "rule"),)
        methods.setdefault(line, method)
        values.setdefault(line, {}).setdefault(place, []).append(each.value)
    of_methods = {"method", "rule"}
    order = values if of_methods & {*keys} else sorted(values, key=lambda line: natural_order(" ".join(line)))
    lines = [
        StudyLine(
            label=", ".join(line),
            method=methods[line] if of_methods & {*keys[:1]} else None,
            points={
                place: stat_of(_FIGURES[panel["y"]], values[line][place]) for place in in_order(values[line])
            },
            seeds={place: tuple(own) for place, own in values[line].items()},
        )
        for line in order
    ]
    return Drawn(str(panel["y"]), x, str(panel.get("title") or ""), tuple(lines))


def _means(observations: Sequence[Observation], measure: str) -> dict[tuple[str, str], float]:
    """Method and point → the mean of a measure of the whole network."""
    values: dict[tuple[str, str], list[float]] = {}
    for each in observations:
        if each.measure == measure and "layer" not in each.about:
            values.setdefault((each.about["method"], each.point), []).append(each.value)
    return {key: stat_of(_FIGURES[measure], own).mean for key, own in values.items()}


def _value(observation: Observation, key: str) -> Any:
    """Where an observation stands on an axis: None if it does not."""
    value = observation.about.get(key)
    if key == TASK and value is not None:
        return task_name(value)
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


def _answer(cards: Sequence[ClaimCard]) -> str:
    """Every claim with what became of it, as one sentence."""
    if not any(card.findings for card in cards):
        return "No verdict: nothing that its claims are about was measured."
    return "; ".join(f"{card.says}: {card.word}, {card.answer}" for card in cards) + "."


def _basis(panels: Sequence[Drawn], groups: Sequence[Group], cells: pd.DataFrame) -> str:
    n = numbers.seeds(set.union(*(panel.counts for panel in panels)))
    key = groups[0].key if groups else None
    devices = sorted(set(cells["device_name"].astype(str)))
    conditions = [key.hardware, f"backend {key.backend}"] if key else devices
    conditions += [*_rules(groups), *["smoke run"] * bool(cells["smoke"].astype(bool).all())]
    return f"{n} a point; {', '.join(conditions)}."


def _rules(groups: Sequence[Group]) -> list[str]:
    """Whose the settings are; of tuned points that differ in the length of a trial alone, once."""
    lengths: dict[str, list[str]] = {}
    for rule in sorted({group.key.tuning for group in groups}, key=natural_order):
        budget, _, epochs = rule.partition(" (")
        lengths.setdefault(budget, []).extend([epochs.partition(" ")[0]] * bool(epochs))
    return [
        f"{budget} ({counted(', '.join(epochs), 'epoch')})" if epochs else budget
        for budget, epochs in lengths.items()
    ]


def _gaps(cells: pd.DataFrame, aside: int) -> Iterator[str]:
    failed = cells[cells["status"] != "ok"]
    if len(failed):
        reasons = Counter(zip(failed["status"], failed["reason"], strict=True))
        words = "; ".join(f"{count} {status}: {reason}" for (status, reason), count in reasons.items())
        yield f"{len(failed)} of {counted(len(cells), 'cell')} did not finish: {words}."
    if aside:
        yield (
            f"Left out here: {counted(aside, 'group')} of the study, run on another machine, with another version, recipe "
            "or rule of tuning, or as smoke runs."
        )


# The figure in numbers --------------------------------------------------------------------------


def _row(name: str, panel: Drawn, line: StudyLine, place: Any) -> dict[str, Any]:
    """A point of the figure, as studies.csv has it."""
    point = line.points[place]
    text, spread = panel.text(point)
    return {
        "study": name,
        "panel": panel.heading,
        "measure": panel.measure,
        "x": panel.x,
        "line": line.label,
        "at": place,
        "mean": point.mean,
        "std": point.std,
        "geometric_std": point.geometric_std,
        "n": point.n,
        "at_text": panel.place_text(place),
        "text": text,
        "spread": spread,
    }


_COLUMNS: tuple[Column[Mapping[str, Any]], ...] = (
    (Heading("figure", numeric=False), lambda row: TableCell(row["panel"])),
    (Heading("line", numeric=False), lambda row: TableCell(row["line"])),
    (
        Heading("at"),
        lambda row: TableCell(row["at_text"], value=None if isinstance(row["at"], str) else row["at"]),
    ),
    (Heading("mean"), lambda row: TableCell(row["text"], row["spread"], row["mean"])),
    (Heading("n"), lambda row: plain_cell(row["n"])),
)
