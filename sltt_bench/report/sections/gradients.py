"""The report's part on the gradient taken apart: cells of kind "analysis"."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from sltt_bench.format import DASH, significant
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
from sltt_bench.report.plots.heat_map import HeatMap, draw_heat_maps
from sltt_bench.report.plots.lines import Axis, Line, Panel, draw_lines
from sltt_bench.results.reader import Results, Run
from sltt_bench.results.schema import DRAWS_FILE, GRADIENTS_FILE, METHOD_GRADIENTS_FILE, OPERATIONS_FILE

POINT = ["timesteps", "tau", "surrogate", "reset", "detach_reset"]
"""What tells the points of a grid apart; everything else is equal within a family."""
MOMENT = [*POINT, "epoch"]
"""Where in the grid and when something was looked at."""
MOST_HEAT_MAPS = 3
MOST_COURSES = 8
COSINE = "cosine(g, g_s)"
CHECKPOINT = "weights from a checkpoint"
ROUNDING = 1e-6
"""What float32 gradients cannot tell from 0."""


@dataclass(frozen=True)
class GradientFamily:
    """The analyses of one recipe that differ in T and in the neuron alone."""

    recipe: str
    settings: tuple[str, ...]
    """Where it differs from the recipe, in words, but for the grid's axes."""
    method: str
    """What trained the network."""
    conditions: tuple[str, ...]
    """What was held fixed, in words."""
    gradients: pd.DataFrame
    """Rows of gradients.csv, averaged over seeds; NaN where a gradient was 0."""
    draws: pd.DataFrame
    operations: pd.DataFrame
    rules: pd.DataFrame
    """Rows of method_gradients.csv, averaged over seeds: each rule's gradient beside BPTT's."""
    accuracy: pd.DataFrame
    """Test accuracy by point and epoch, averaged over seeds; empty for synthetic data."""
    seeds: int
    batches: int
    run: str
    """The name of its first run."""
    failures: tuple[str, ...]
    """Why some cells did not finish."""

    @property
    def title(self) -> str:
        """The recipe, and what was set otherwise than it has it."""
        return f"{self.recipe} ({', '.join(self.settings)})" if self.settings else self.recipe

    def title_among(self, families: "Sequence[GradientFamily]") -> str:
        """The title, and what tells this family from others (itself may be among them) of the same title."""
        siblings = [family for family in families if family.title == self.title]
        own, *_ = stated = [(*each.conditions, f"{each.batches} batches") for each in (self, *siblings)]
        words = [word for word in own if any(word not in others for others in stated)]
        if stated.count(own) > 2:  # itself, and itself among the siblings
            words.append(f"run {self.run}")
        return ", ".join([self.title, *words])

    @property
    def epochs(self) -> list[int]:
        """The epochs that were looked at."""
        return sorted(int(epoch) for epoch in self.gradients["epoch"].unique())

    @property
    def when(self) -> str:
        """The last epoch that was looked at, in words."""
        last = self.epochs[-1]
        start = f"with {CHECKPOINT}" if CHECKPOINT in self.conditions else "at initialisation"
        return f"after epoch {last} of training with {self.method}" if last else start

    def level(self, level: str, epoch: int | None = None) -> pd.DataFrame:
        """The rows of one level at an epoch (None: the last)."""
        rows = self.gradients[self.gradients["level"] == level]
        return rows[rows["epoch"] == (self.epochs[-1] if epoch is None else epoch)]

    def values(self, field: str) -> list[Any]:
        """The values that a field of the grid took."""
        return sorted(self.gradients[field].unique())

    @cached_property
    def lowest_layers(self) -> dict[tuple[Any, ...], tuple[str, float]]:
        """Point and epoch → the layer with the lowest cosine there, and that cosine."""
        return _lowest_layers(self.gradients[self.gradients["level"] == "layer"], MOMENT)

    @cached_property
    def accuracies(self) -> dict[tuple[Any, ...], float]:
        """Point and epoch → test top-1 where it was evaluated."""
        known = self.accuracy.dropna(subset=["test_top1"]).to_dict("records")
        return {_of(row, MOMENT): float(row["test_top1"]) for row in reversed(known)}

    @property
    def lowest_layer(self) -> str | None:
        """The layer with the lowest cosine, on average over the grid; None if no layer has any."""
        means = self.level("layer").groupby("name", sort=False)["cosine_mean"].mean().dropna()
        return None if means.empty else str(means.idxmin())


def gradients(context: Context) -> Contribution:
    """Tables and plots of every analysis."""
    families = find_families(context.results)
    return Contribution(
        sections=tuple(
            _section(family, number, family.title_among(families)) for number, family in enumerate(families)
        ),
        frames=_frames(context.results) if families else {},
        sentence=f"{len(families)} {'analysis' if len(families) == 1 else 'analyses'} of the gradient."
        if families
        else "",
    )


# Reading ----------------------------------------------------------------------------------------


def find_families(results: Results) -> list[GradientFamily]:
    """The analyses in families, ordered by recipe."""
    cells = results.cells[results.cells["kind"] == "analysis"]
    if cells.empty:
        return []
    held_fixed = [
        _held_fixed(results.runs[int(cell["run"])], str(cell["cell_id"])) for _, cell in cells.iterrows()
    ]
    family = ["recipe", "method", "device_name", "precision", "batch_size", "synthetic", "smoke"]
    cells = cells.assign(held_fixed=held_fixed)
    tables = [*(_rows(results, file) for file in _FILES), results.epochs]
    families = []
    for _, members in cells.groupby([*family, "held_fixed"], sort=True):
        own = [_belonging(table, members, ["run", "cell_id"]) for table in tables]
        if not own[0].empty:
            first = members.iloc[0]
            run = results.runs[int(first["run"])]
            settings = _settings(run, str(first["cell_id"]))
            families.append(_family(members, settings, run.path.name, *own))
    return families


def _family(
    cells: pd.DataFrame,
    settings: Sequence[str],
    run: str,
    rows: pd.DataFrame,
    draws: pd.DataFrame,
    operations: pd.DataFrame,
    rules: pd.DataFrame,
    epochs: pd.DataFrame,
) -> GradientFamily:
    first = cells.iloc[0]
    failed = cells[cells["status"] != "ok"]
    of_cell = rows[["run", "cell_id", *POINT]].drop_duplicates()
    epochs = epochs.merge(of_cell.drop(columns="timesteps"), on=["run", "cell_id"])
    conditions = [first["device_name"], "gradients in fp32"]
    conditions += [f"trained in {first['precision']}"] * bool(rows["epoch"].max() > 0)
    conditions += [f"batch {int(first['batch_size'])}", *settings]
    conditions += ["synthetic data"] * bool(first["synthetic"]) + ["smoke run"] * bool(first["smoke"])
    return GradientFamily(
        recipe=str(first["recipe"]),
        settings=tuple(settings),
        method=str(first["method"]),
        conditions=tuple(word for word in map(str, conditions) if word),
        gradients=_mean_over_seeds(rows, [*POINT, "epoch", "level", "name", "depth"]),
        draws=_mean_over_seeds(draws, [*POINT, "epoch", "drawn"]),
        operations=operations.drop_duplicates(["timesteps", "counted_method"]),
        rules=_mean_over_seeds(rules, [*POINT, "epoch", "compared_method", "level", "name", "depth"]),
        accuracy=epochs.groupby([*POINT, "epoch"])["test_top1"].mean().reset_index(),
        seeds=int(rows["seed"].nunique()),
        batches=int(rows["batches"].max()),
        run=run,
        failures=tuple(
            f"{len(alike)} cells did not finish: {status}, {reason}"
            for (status, reason), alike in failed.groupby(["status", "reason"])
        ),
    )


def _mean_over_seeds(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return rows.groupby(by, sort=True, dropna=False).mean(numeric_only=True).reset_index()


_FILES = (GRADIENTS_FILE, DRAWS_FILE, OPERATIONS_FILE, METHOD_GRADIENTS_FILE)


def _rows(results: Results, file: str) -> pd.DataFrame:
    """The rows of a file in all runs that belong to the last attempt of a cell."""
    return _belonging(results.rows(file), results.cells, ["run", "cell_id", "attempt"])


def _belonging(rows: pd.DataFrame, cells: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The rows whose key is that of a cell."""
    return rows[pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(cells[key]))]


def _held_fixed(run: Run, cell_id: str) -> str:
    """What two cells must share to be points of one grid: all but T and what POINT has of the neuron."""
    cell, recipe = run.cell(cell_id), run.recipe_of(cell_id)
    left_out = ("timesteps", "neuron", "description", "methods", "seeds", "smoke", "claims", "study")
    shared = {key: value for key, value in recipe.items() if key not in left_out}
    shared["neuron"] = {key: value for key, value in recipe.get("neuron", {}).items() if key not in POINT}
    shared |= {"batches": cell.get("options", {}).get("batches")}
    shared |= {source: cell.get(source) for source in ("init", "needs")}
    return json.dumps(shared, sort_keys=True)


def _settings(run: Run, cell_id: str) -> list[str]:
    """Where a cell differs from its recipe, in words, but for a grid's axes and what is said anyway."""
    cell = run.cell(cell_id)
    shown_anyway = {"timesteps", "train.batch_size", *(f"neuron.{field}" for field in POINT)}
    words = [
        f"{key} = {value}" for key, value in cell.get("overrides", {}).items() if key not in shown_anyway
    ]
    return words + [CHECKPOINT] * bool(cell.get("init"))


def _frames(results: Results) -> dict[str, pd.DataFrame]:
    frames = {file: _rows(results, file) for file in _FILES}
    return {file: frame.drop(columns="run") for file, frame in frames.items()}


# Sections ---------------------------------------------------------------------------------------


def _section(family: GradientFamily, number: int, title: str) -> Section:
    name = f"gradients-{family.recipe.replace('/', '-')}-{number + 1}"
    blocks: list[Block] = [_overview(family, name)]
    for figure in (_against("timesteps"), _against("tau"), _heat_maps, _course, _draws):
        drawn = figure(family, name)
        if drawn is not None:
            blocks.append(drawn)
    if not family.rules.empty:
        blocks += [_rules(family, name), _rules_by_layer(family, name)]
    if not family.operations.empty:
        blocks.append(_operations(family, name))
    if len(family.epochs) > 1:
        blocks.append(_every_epoch(family, name))
    return Section(
        name,
        f"The gradient taken apart: {title}",
        tuple(blocks),
        lead=(f"{_summary(family)}.", *(_LEAD if number == 0 else ())),
        page=family.recipe,
        chips=family.conditions,
        folded=bool(family.settings) and number > 0,
    )


_LEAD = (
    "g is the full gradient (BPTT), g_s its spatial part (SLTT), g − g_s what travels through time; all on "
    "the same weights, batches and dropout masks, in fp32.",
    "The whole network's figures mix layers that differ: a readout without state has no temporal part and "
    "may have the largest gradient. Look at the layers.",
)


def _summary(family: GradientFamily) -> str:
    network = family.level("network").dropna(subset=["cosine_mean"])
    if network.empty:
        return f"{family.title}: the gradient is 0 {family.when}, so that there is nothing to take apart"
    several = network[network["timesteps"] > 1]
    network = several if len(several) else network  # at T = 1 it is 1, of necessity
    ordered = network.sort_values("cosine_mean", kind="stable")
    low, high = ordered.iloc[0], ordered.iloc[-1]
    where = f" ({_point_words(low, ['timesteps', 'tau'])})"
    if len(network) == 1:
        return f"{family.title}, {family.when}: {COSINE} is {_cosine(low['cosine_mean'])}{where}"
    return (
        f"{family.title}, {family.when}: {COSINE} is between {_cosine(low['cosine_mean'])}{where} and "
        f"{_cosine(high['cosine_mean'])} ({_point_words(high, ['timesteps', 'tau'])})"
    )


# Tables -----------------------------------------------------------------------------------------


def _overview(family: GradientFamily, name: str) -> Table:
    notes = [
        f"Mean over {family.batches} batches{_and_seeds(family)}; ± standard deviation over batches.",
        f"{family.when[0].upper()}{family.when[1:]}.",
        *(f"{failure}." for failure in family.failures),
    ]
    return _table_of_points(
        family, f"{name}-points", "Full and spatial gradient", family.level("network"), notes
    )


def _every_epoch(family: GradientFamily, name: str) -> Table:
    rows = family.gradients[family.gradients["level"] == "network"]
    title = "At every epoch that was looked at"
    return _table_of_points(family, f"{name}-epochs", title, rows, [], secondary=True)


def _table_of_points(
    family: GradientFamily,
    name: str,
    title: str,
    rows: pd.DataFrame,
    notes: Sequence[str],
    secondary: bool = False,
) -> Table:
    columns = _setting_columns(_varied(family, keep=("timesteps", "tau")))
    if len(family.epochs) > 1:
        columns.append((Heading("epochs"), partial(_number_cell, field="epoch")))
    columns += [
        (Heading(COSINE), lambda row: _measured_cell(row, "cosine", _cosine)),
        (Heading("‖g_s‖ / ‖g‖"), lambda row: _measured_cell(row, "spatial_share", significant)),
        (Heading("‖g − g_s‖ / ‖g‖"), lambda row: _measured_cell(row, "temporal_share", significant)),
        _lowest_layer_column(family.lowest_layers, MOMENT),
    ]
    if family.accuracy["test_top1"].notna().any():
        columns.append((Heading("test top-1", "%"), partial(_accuracy_cell, family)))
    return table_of(name, title, columns, rows.to_dict("records"), notes, secondary=secondary)


def _setting_columns(fields: Sequence[str]) -> list[Column[Any]]:
    """A column for each of these fields of the grid."""
    return [
        (Heading(_WORDS[field]), partial(_number_cell, field=field))
        if field in ("timesteps", "tau")
        else _word_column(_WORDS[field], field)
        for field in fields
    ]


def _number_cell(row: Any, field: str) -> TableCell:
    return TableCell(f"{row[field]:g}", value=row[field])


def _word_column(heading: str, field: str) -> Column[Any]:
    return Heading(heading, numeric=False), lambda row: TableCell(str(row[field]), value=row[field])


def _measured_cell(row: Any, quantity: str, text: Callable[[float], str]) -> TableCell:
    mean, std = row[f"{quantity}_mean"], row[f"{quantity}_std"]
    if not np.isfinite(mean):
        return TableCell(DASH, tone="muted")
    shown = np.isfinite(std) and std > ROUNDING
    return TableCell(text(mean), f"± {significant(std, 1)}" if shown else "", mean)


def _lowest_layer_column(lowest: dict[tuple[Any, ...], tuple[str, float]], by: Sequence[str]) -> Column[Any]:
    """The lowest cosine of a layer where the fields `by` have the row's values, and the layer."""

    def cell(row: Any) -> TableCell:
        if (place := _of(row, by)) not in lowest:
            return TableCell(DASH, tone="muted")
        layer, cosine = lowest[place]
        return TableCell(_cosine(cosine), layer if cosine < 1 - ROUNDING else "", cosine)

    return Heading("lowest layer", numeric=False), cell


def _of(row: Any, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[field] for field in fields)


def _lowest_layers(layers: pd.DataFrame, by: Sequence[str]) -> dict[tuple[Any, ...], tuple[str, float]]:
    """Values of the fields `by` → the layer with the lowest cosine there, and that cosine."""
    lowest: dict[tuple[Any, ...], tuple[str, float]] = {}
    known = layers.dropna(subset=["cosine_mean"]).sort_values("cosine_mean", kind="stable")
    for row in known.to_dict("records"):
        lowest.setdefault(_of(row, by), (str(row["name"]), float(row["cosine_mean"])))
    return lowest


def _accuracy_cell(family: GradientFamily, row: Any) -> TableCell:
    top1 = family.accuracies.get(_of(row, MOMENT))
    return TableCell(DASH, tone="muted") if top1 is None else TableCell(numbers.percent(top1), value=top1)


def _rules(family: GradientFamily, name: str) -> Table:
    """Each rule's gradient over all weights beside BPTT's, the nearest first, at the last epoch."""
    by = [*POINT, "compared_method"]
    return table_of(
        f"{name}-rules",
        "Each rule's gradient beside BPTT's",
        [
            *_rule_columns(family),
            _lowest_layer_column(_lowest_layers(_last_of_rules(family, "layer"), by), by),
        ],
        _last_of_rules(family, "network")
        .sort_values("cosine_mean", ascending=False, kind="stable")
        .to_dict("records"),
        [
            f"{family.when[0].upper()}{family.when[1:]}; mean over {family.batches} batches"
            f"{_and_seeds(family)}, ± standard deviation over batches. Empty where a gradient was 0."
        ],
    )


def _rules_by_layer(family: GradientFamily, name: str) -> Table:
    rows = _last_of_rules(family, "layer").sort_values(["compared_method", "depth"], kind="stable")
    return table_of(
        f"{name}-rules-layers",
        "Each rule's gradient beside BPTT's, layer by layer",
        [*_rule_columns(family), _word_column("layer", "name")],
        rows.to_dict("records"),
        secondary=True,
    )


def _last_of_rules(family: GradientFamily, level: str) -> pd.DataFrame:
    rows = family.rules
    return rows[(rows["level"] == level) & (rows["epoch"] == family.epochs[-1])]


def _rule_columns(family: GradientFamily) -> list[Column[Any]]:
    """What every table of rules begins with."""
    return [
        *_setting_columns(_varied(family)),
        _word_column("rule", "compared_method"),
        (Heading("cosine with BPTT"), lambda row: _measured_cell(row, "cosine", _cosine)),
        (Heading("norm ÷ BPTT"), lambda row: _measured_cell(row, "norm_ratio", significant)),
    ]


def _operations(family: GradientFamily, name: str) -> Table:
    columns = [
        *_setting_columns(["timesteps"]),
        _word_column("method", "counted_method"),
        _count_column("forward", "forward_multiplications"),
        _count_column("backward in space", "spatial_multiplications"),
        _count_column("backward through time", "temporal_multiplications"),
        (Heading("share of the backward pass", "%"), _share_through_time),
    ]
    rows = family.operations.sort_values("timesteps", kind="stable").to_dict("records")
    note = (
        "Multiplications for one sample and all T steps, counted as an iteration runs on the backend "
        "`reference`: matrix products, convolutions and elementwise products; normalisation is not counted."
    )
    title = "Multiplications, counted"
    return table_of(f"{name}-operations", title, columns, rows, [note], secondary=True)


def _count_column(heading: str, field: str) -> Column[Any]:
    def cell(row: Any) -> TableCell:
        per_sample = float(row[field]) / float(row["samples"])
        return TableCell(significant(per_sample, 4), value=per_sample)

    return Heading(heading), cell


def _share_through_time(row: Any) -> TableCell:
    spatial, temporal = float(row["spatial_multiplications"]), float(row["temporal_multiplications"])
    share = temporal / (spatial + temporal)
    return TableCell(numbers.percent(share), value=share)


# Figures ----------------------------------------------------------------------------------------

_WORDS = {
    "timesteps": "T",
    "tau": "τ",
    "surrogate": "surrogate",
    "reset": "reset",
    "detach_reset": "detached reset",
}
_AXES = {"timesteps": "T, time steps", "tau": "τ, membrane time constant [steps]"}


def _against(field: str) -> Callable[[GradientFamily, str], Figure | MissingFigure | None]:
    """The figure of cosine against T or τ."""
    return partial(_cosine_against, field)


def _cosine_against(field: str, family: GradientFamily, name: str) -> Figure | MissingFigure:
    title = f"Cosine against {_WORDS[field]}"
    drawn = _along(field, family.level("network"))
    if drawn.empty:
        example = "timesteps=1,2,4,8" if field == "timesteps" else "tau=1.1,1.5,2.0,4.0"
        return MissingFigure(
            title,
            f"only one {_WORDS[field]} was looked at",
            f"sltt-bench analyze gradients {family.recipe} --over {example}",
        )
    caption = (
        f"{COSINE} {family.when}. {_fixed_words(family, drawn, but=(field,))}Mean over {family.batches} "
        f"batches{_and_seeds(family)}, bars one standard deviation over batches; dotted: no temporal part."
    )
    panels = [_panel(family, field, drawn, "Whole network")]
    lowest = family.lowest_layer
    if lowest is not None:
        layers = family.level("layer")
        panels.append(
            _panel(family, field, _along(field, layers[layers["name"] == lowest]), f"Layer {lowest}")
        )
    return Figure(f"{name}-{field}", title, caption, draw_lines, lambda: tuple(panels))


def _along(field: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of points that have a sibling: one that differs from it in this field alone."""
    others = [other for other in POINT if other != field]
    return rows[rows.groupby(others)[field].transform("nunique") > 1]


def _panel(family: GradientFamily, field: str, rows: pd.DataFrame, title: str) -> Panel:
    lines = _lines(rows, field, "cosine_mean", "cosine_std")
    return Panel(title, _axis(lines, _AXES[field]), Axis(COSINE), lines, _AGREEMENT)


_AGREEMENT = ((1.0, ""),)
"""Marked in plots of cosines: no temporal part."""


def _axis(lines: Sequence[Line], label: str) -> Axis:
    """The x axis with a tick at each value that some line has."""
    return Axis(label, at=tuple(sorted({x for line in lines for x in line.xs})))


def _lines(rows: pd.DataFrame, x: str, y: str, spread: str) -> tuple[Line, ...]:
    """A line for each point of the grid but for what the x axis shows; points without a value are left out."""
    others = [field for field in POINT if field != x]
    differing = [field for field in others if rows[field].nunique() > 1]
    lines = []
    for _, members in rows.dropna(subset=[y]).groupby(others, sort=True):
        members = members.sort_values(x)
        xs, ys, spreads = (members[column].astype(float).tolist() for column in (x, y, spread))
        lines.append(Line(_point_words(members.iloc[0], differing), xs, ys, spreads))
    return tuple(lines)


def _heat_maps(family: GradientFamily, name: str) -> Figure | None:
    others = [field for field in POINT if field != "timesteps"]
    drawn = _along("timesteps", family.level("layer"))
    if drawn.empty:
        return None
    groups = list(drawn.groupby(others, sort=True))
    if len(groups) > MOST_HEAT_MAPS:
        groups = [groups[0], groups[len(groups) // 2], groups[-1]]
    differing = [field for field in others if drawn[field].nunique() > 1] or ["tau"]
    maps = tuple(_heat_map(rows, _point_words(rows.iloc[0], differing)) for _, rows in groups)
    caption = (
        f"{COSINE} of each layer, the input's end on top, {family.when}. "
        f"{_fixed_words(family, drawn, but=('timesteps', *differing))}Mean over {family.batches} batches{_and_seeds(family)}; "
        "blank: the layer's gradient is 0."
    )
    return Figure(f"{name}-layers", "Cosine by layer and T", caption, draw_heat_maps, lambda: maps)


def _heat_map(rows: pd.DataFrame, title: str) -> HeatMap:
    table = rows.pivot_table(
        index=["depth", "name"], columns="timesteps", values="cosine_mean", dropna=False, sort=True
    )
    table = table.dropna(how="all")
    layers = tuple(str(name) or "(top level)" for name in table.index.get_level_values("name"))
    return HeatMap(
        title,
        layers,
        tuple(str(int(steps)) for steps in table.columns),
        table.to_numpy(dtype=float),
        _AXES["timesteps"],
        COSINE,
        largest=1.0,
    )


def _course(family: GradientFamily, name: str) -> Figure | MissingFigure:
    title = "Cosine over training"
    if len(family.epochs) < 2:
        return MissingFigure(
            title,
            "only one epoch was looked at",
            f"sltt-bench analyze gradients {family.recipe} --epochs 0,1,5,last",
        )
    rows, only = family.gradients, ""
    if len(rows[POINT].drop_duplicates()) > MOST_COURSES:
        longest = family.values("timesteps")[-1]
        rows, only = rows[rows["timesteps"] == longest], f", at T = {longest:g}"
    panels = []
    for level, part, words in (("network", "", "Whole network"), ("layer", family.lowest_layer, "Layer")):
        if part is not None:
            own = rows[(rows["level"] == level) & (rows["name"] == part)]
            lines = _lines(own, "epoch", "cosine_mean", "cosine_std")
            title_of_part = f"{words} {part}".strip()
            panels.append(
                Panel(title_of_part, _axis(lines, "epochs trained"), Axis(COSINE), lines, _AGREEMENT)
            )
    caption = (
        f"{COSINE} while the network is trained with {family.method}{only}. {_fixed_words(family, rows)}"
        f"Mean over the same {family.batches} training batches at every epoch{_and_seeds(family)}, bars one "
        "standard deviation over batches."
    )
    return Figure(f"{name}-course", title, caption, draw_lines, lambda: tuple(panels))


def _draws(family: GradientFamily, name: str) -> Figure | None:
    steps = family.values("timesteps")[-1]
    rows = family.draws
    if rows.empty or steps < 2:
        return None
    rows = rows[(rows["timesteps"] == steps) & (rows["epoch"] == family.epochs[-1])]
    below = rows[rows["drawn"] < steps]
    variance = _lines(below, "drawn", "relative_variance_mean", "relative_variance_std")
    cosine = _lines(rows, "drawn", "cosine_to_sltt_mean", "cosine_to_sltt_std")
    if not variance or not cosine:
        return None
    label = "K, steps with a gradient"
    panels = (
        Panel(
            "Relative variance",
            _axis(variance, label),
            Axis("E‖(T/K)G − g_s‖² / ‖g_s‖²", logarithmic=True),
            variance,
        ),
        Panel("Agreement with SLTT", _axis(cosine, label), Axis("cosine(G, g_s)"), cosine, _AGREEMENT),
    )
    caption = (
        f"SLTT-K's gradient G, the sum over K of T = {steps:g} steps drawn without replacement, against SLTT's "
        f"g_s, {family.when}. Left: the closed form, bars one standard deviation over batches; K = T has "
        f"variance 0. Right: mean over the draws that have a gradient, bars one standard deviation over them. "
        f"{_fixed_words(family, rows, but=('timesteps',))}"
    )
    return Figure(f"{name}-draws", "SLTT-K against K", caption, draw_lines, lambda: panels)


# Words ------------------------------------------------------------------------------------------


def _varied(family: GradientFamily, keep: Sequence[str] = ()) -> list[str]:
    return [field for field in POINT if field in keep or len(family.values(field)) > 1]


def _fixed_words(family: GradientFamily, drawn: pd.DataFrame, but: Sequence[str] = ()) -> str:
    """What was held fixed among the rows that are drawn, as a sentence for a caption."""
    fixed = [field for field in POINT if field not in but and drawn[field].nunique() == 1]
    words = [_point_words(drawn.iloc[0], [field]) for field in fixed]
    return f"Held fixed: {', '.join([*words, *family.conditions])}. "


def _point_words(row: Any, fields: Sequence[str]) -> str:
    return ", ".join(_setting_words(field, row[field]) for field in fields)


def _setting_words(field: str, value: Any) -> str:
    if field in ("timesteps", "tau"):
        return f"{_WORDS[field]} = {value:g}"
    if field == "detach_reset":
        return "detached reset" if value else "reset not detached"
    return f"{value} reset" if field == "reset" else f"surrogate {value}"


def _and_seeds(family: GradientFamily) -> str:
    return f" and {family.seeds} seeds" if family.seeds > 1 else ""


def _cosine(value: float) -> str:
    """Enough decimals to tell a cosine from 1."""
    return f"{value:.4f}" if value < 0.99995 else f"{value:.6f}".rstrip("0").rstrip(".")
