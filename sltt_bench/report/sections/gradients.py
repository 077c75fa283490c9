"""The report's part on the gradient taken apart: cells of kind "analysis"."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sltt_bench.format import significant
from sltt_bench.report.document import (
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
from sltt_bench.report.sections.cells import EMPTY, percent_cell
from sltt_bench.results.reader import Results, Run
from sltt_bench.results.schema import (
    DRAWS_FILE,
    EPOCHS_FILE,
    GRADIENTS_FILE,
    METHOD_GRADIENTS_FILE,
    OPERATIONS_FILE,
)

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
    """Rows of gradients.csv, averaged over seeds; NaN where a gradient was 0. Columns `lowest_layer`, `lowest_cosine`:
    the layer with the lowest cosine at the row's point and epoch."""
    draws: pd.DataFrame
    operations: pd.DataFrame
    rules: pd.DataFrame
    """Rows of method_gradients.csv, averaged over seeds: each rule's gradient beside BPTT's, with the same two columns."""
    accuracy: Mapping[Any, float]
    """Point and epoch → test top-1, averaged over seeds; empty for synthetic data."""
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

    def last(self, rows: pd.DataFrame, level: str) -> pd.DataFrame:
        """Those of one level at the last epoch that was looked at."""
        return rows[(rows["level"] == level) & (rows["epoch"] == self.epochs[-1])]

    def values(self, field: str) -> list[Any]:
        """The values that a field of the grid took."""
        return sorted(self.gradients[field].unique())

    def accuracy_at(self, row: Mapping[Any, Any]) -> float | None:
        """Test top-1 at a row's point and epoch, where it was evaluated."""
        return self.accuracy.get(tuple(row[field] for field in MOMENT))

    @property
    def lowest_layer(self) -> str | None:
        """The layer with the lowest cosine, on average over the grid; None if no layer has any."""
        means = self.last(self.gradients, "layer").groupby("name", sort=False)["cosine_mean"].mean().dropna()
        return None if means.empty else str(means.idxmin())


def gradients(context: Context) -> Contribution:
    """Tables and plots of every analysis."""
    families = find_families(context.results)
    if not families:
        return Contribution()
    count = f"{len(families)} {'analysis' if len(families) == 1 else 'analyses'}"
    return Contribution(
        sections=tuple(_section(family, number, families) for number, family in enumerate(families)),
        frames={file: _rows(context.results, file).drop(columns="run") for file in _FILES},
        sentence=f"{count} of the gradient.",
    )


# Reading ----------------------------------------------------------------------------------------


def find_families(results: Results) -> list[GradientFamily]:
    """The analyses in families, ordered by recipe."""
    cells = results.cells[results.cells["kind"] == "analysis"]
    if cells.empty:
        return []
    cells = cells.assign(
        held_fixed=[
            _held_fixed(results.runs[int(run)], str(cell_id))
            for run, cell_id in zip(cells["run"], cells["cell_id"], strict=True)
        ]
    )
    family = ["recipe", "method", "device_name", "precision", "batch_size", "synthetic", "smoke"]
    tables = {file: _rows(results, file) for file in _FILES} | {EPOCHS_FILE: results.epochs}
    families = []
    for _, members in cells.groupby([*family, "held_fixed"], sort=True):
        own = {file: table.merge(members[["run", "cell_id"]]) for file, table in tables.items()}
        if not own[GRADIENTS_FILE].empty:
            families.append(_family(results.runs[int(members.iloc[0]["run"])], members, own))
    return families


def _family(run: Run, cells: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> GradientFamily:
    """The family of these cells, the first of them the run's, with their rows of each file."""
    first = cells.iloc[0]
    settings = _settings(run, str(first["cell_id"]))
    rows = tables[GRADIENTS_FILE]
    of_cell = rows[["run", "cell_id", *POINT]].drop_duplicates()
    epochs = tables[EPOCHS_FILE].merge(of_cell.drop(columns="timesteps"), on=["run", "cell_id"])
    conditions = [first["device_name"], "gradients in fp32"]
    conditions += [f"trained in {first['precision']}"] * bool(rows["epoch"].max() > 0)
    conditions += [f"batch {int(first['batch_size'])}", *settings]
    conditions += ["synthetic data"] * bool(first["synthetic"]) + ["smoke run"] * bool(first["smoke"])
    of_rule = [*MOMENT, "compared_method"]
    rules = _mean_over_seeds(tables[METHOD_GRADIENTS_FILE], [*of_rule, *_PART])
    failed = cells[cells["status"] != "ok"].groupby(["status", "reason"])
    return GradientFamily(
        recipe=str(first["recipe"]),
        settings=settings,
        method=str(first["method"]),
        conditions=tuple(word for word in map(str, conditions) if word),
        gradients=_with_lowest_layer(_mean_over_seeds(rows, [*MOMENT, *_PART]), MOMENT),
        draws=_mean_over_seeds(tables[DRAWS_FILE], [*MOMENT, "drawn"]),
        operations=_counted_once(tables[OPERATIONS_FILE], of_cell),
        rules=_with_lowest_layer(rules, of_rule),
        accuracy=_newest(epochs, MOMENT).groupby(MOMENT)["test_top1"].mean().dropna().to_dict(),
        seeds=int(rows["seed"].nunique()),
        batches=int(rows["batches"].max()),
        run=run.path.name,
        failures=tuple(
            f"{len(alike)} cells did not finish: {status}, {reason}" for (status, reason), alike in failed
        ),
    )


_PART = ["level", "name", "depth"]
"""What tells the layers, parameters and the network apart."""


def _mean_over_seeds(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    alike = _newest(rows, by).groupby(by, sort=True, dropna=False)
    return alike.mean(numeric_only=True).reset_index()


def _newest(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of what several runs looked at with one seed, what the newest of them saw: they are no further seeds."""
    return rows.sort_values("run", kind="stable").drop_duplicates([*by, "seed"], keep="last")


def _counted_once(operations: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The counts of each method at each T, and at each value of what else of a point they depend on: with those columns.

    `points`: where in the grid each cell stands.
    """
    if operations.empty:
        return operations
    rows = operations.merge(points.drop(columns="timesteps"), on=["run", "cell_id"])
    rows = _newest(rows, [*POINT, "counted_method"])
    deciding = list(POINT)
    for field in POINT[1:]:
        fewer = [other for other in deciding if other != field]
        counts = rows.groupby([*fewer, "counted_method"])[list(_COUNTS)].nunique()
        if (counts <= 1).all(axis=None):
            deciding = fewer
    once = rows.drop_duplicates([*deciding, "counted_method"])
    return once[[*deciding, "counted_method", "samples", *_COUNTS]]


_COUNTS = ("forward_multiplications", "spatial_multiplications", "temporal_multiplications")


def _with_lowest_layer(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The rows, each with the lowest cosine of a layer where the fields `by` have its values, and that layer."""
    if rows.empty:  # of a file that no run has, which has no types either
        return rows
    layers = rows[rows["level"] == "layer"].dropna(subset=["cosine_mean"])
    lowest = layers.sort_values("cosine_mean", kind="stable").drop_duplicates(by)
    lowest = lowest[[*by, "name", "cosine_mean"]].set_axis([*by, "lowest_layer", "lowest_cosine"], axis=1)
    return rows.merge(lowest, on=by, how="left")


_FILES = (GRADIENTS_FILE, DRAWS_FILE, OPERATIONS_FILE, METHOD_GRADIENTS_FILE)


def _rows(results: Results, file: str) -> pd.DataFrame:
    """The rows of a file in all runs that belong to the last attempt of a cell."""
    return results.rows(file).merge(results.cells[["run", "cell_id", "attempt"]])


def _held_fixed(run: Run, cell_id: str) -> str:
    """What two cells must share to be points of one grid, and be looked at last after as many epochs: all but T and what
    POINT has of the neuron."""
    cell, recipe = run.cell(cell_id), run.recipe_of(cell_id)
    left_out = ("timesteps", "neuron", "description", "methods", "seeds", "smoke", "claims", "study")
    shared = {key: value for key, value in recipe.items() if key not in left_out}
    shared["neuron"] = {key: value for key, value in recipe.get("neuron", {}).items() if key not in POINT}
    options = cell.get("options", {})
    # Tables and plots show the last epoch that was looked at: a point that was not looked at then would be in none.
    shared |= {"batches": options.get("batches"), "last": max(options.get("epochs") or [0])}
    shared |= {source: cell.get(source) for source in ("init", "needs")}
    return json.dumps(shared, sort_keys=True)


def _settings(run: Run, cell_id: str) -> tuple[str, ...]:
    """Where a cell differs from its recipe, in words, but for a grid's axes and what is said anyway."""
    cell = run.cell(cell_id)
    shown_anyway = {"timesteps", "train.batch_size", *(f"neuron.{field}" for field in POINT)}
    overrides = cell.get("overrides", {}).items()
    words = [f"{key} = {value}" for key, value in overrides if key not in shown_anyway]
    return (*words, *[CHECKPOINT] * bool(cell.get("init")))


# Sections ---------------------------------------------------------------------------------------


def _section(family: GradientFamily, number: int, families: Sequence[GradientFamily]) -> Section:
    name = f"gradients-{family.recipe.replace('/', '-')}-{number + 1}"
    figures = (
        _against("timesteps", family, name),
        _against("tau", family, name),
        _heat_maps(family, name),
        _course(family, name),
        _draws(family, name),
    )
    blocks = [_overview(family, name), *(figure for figure in figures if figure)]
    if not family.rules.empty:
        blocks += [_rules(family, name), _rules_by_layer(family, name)]
    if not family.operations.empty:
        blocks.append(_operations(family, name))
    if len(family.epochs) > 1:
        blocks.append(_every_epoch(family, name))
    return Section(
        name,
        f"The gradient taken apart: {family.title_among(families)}",
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
    network = family.last(family.gradients, "network").dropna(subset=["cosine_mean"])
    if network.empty:
        return f"{family.title}: the gradient is 0 {family.when}, so that there is nothing to take apart"
    several = network[network["timesteps"] > 1]
    network = several if len(several) else network  # at T = 1 it is 1, of necessity
    ordered = network.sort_values("cosine_mean", kind="stable").to_dict("records")
    low, high = (
        f"{_cosine(row['cosine_mean'])} ({_point_words(row, ['timesteps', 'tau'])})"
        for row in (ordered[0], ordered[-1])
    )
    value = low if len(ordered) == 1 else f"between {low} and {high}"
    return f"{family.title}, {family.when}: {COSINE} is {value}"


# Tables -----------------------------------------------------------------------------------------


def _overview(family: GradientFamily, name: str) -> Table:
    notes = [
        f"Mean over {family.batches} batches{_and_seeds(family)}; ± standard deviation over batches.",
        f"{family.when[0].upper()}{family.when[1:]}.",
        *(f"{failure}." for failure in family.failures),
    ]
    title, rows = "Full and spatial gradient", family.last(family.gradients, "network").to_dict("records")
    return table_of(f"{name}-points", title, _columns_of_points(family), rows, notes)


def _every_epoch(family: GradientFamily, name: str) -> Table:
    rows = family.gradients[family.gradients["level"] == "network"].to_dict("records")
    title = "At every epoch that was looked at"
    return table_of(f"{name}-epochs", title, _columns_of_points(family), rows, secondary=True)


def _columns_of_points(family: GradientFamily) -> list[Column[Any]]:
    fields = [*_varied(family, keep=("timesteps", "tau")), *["epoch"] * (len(family.epochs) > 1)]
    columns = [
        *map(_field_column, fields),
        _measured_column(COSINE, "cosine", _cosine),
        _measured_column("‖g_s‖ / ‖g‖", "spatial_share"),
        _measured_column("‖g − g_s‖ / ‖g‖", "temporal_share"),
        _LOWEST_LAYER,
    ]
    if family.accuracy:
        columns.append((Heading("test top-1", "%"), lambda row: percent_cell(family.accuracy_at(row))))
    return columns


def _field_column(field: str) -> Column[Any]:
    """A column of the rows as it stands."""
    numeric = field in ("timesteps", "tau", "epoch")

    def cell(row: Any) -> TableCell:
        return TableCell(f"{row[field]:g}" if numeric else str(row[field]), value=row[field])

    return Heading(_WORDS[field], numeric=numeric), cell


def _measured_column(heading: str, quantity: str, text: Callable[[float], str] = significant) -> Column[Any]:
    """Means with their standard deviations."""

    def cell(row: Any) -> TableCell:
        mean, std = row[f"{quantity}_mean"], row[f"{quantity}_std"]
        if not np.isfinite(mean):
            return EMPTY
        shown = np.isfinite(std) and std > ROUNDING
        return TableCell(text(mean), f"± {significant(std, 1)}" if shown else "", mean)

    return Heading(heading), cell


def _lowest_layer_cell(row: Any) -> TableCell:
    cosine = row["lowest_cosine"]
    if np.isnan(cosine):
        return EMPTY
    return TableCell(_cosine(cosine), row["lowest_layer"] if cosine < 1 - ROUNDING else "", cosine)


_LOWEST_LAYER = (Heading("lowest layer", numeric=False), _lowest_layer_cell)


def _rules(family: GradientFamily, name: str) -> Table:
    """Each rule's gradient over all weights beside BPTT's, the nearest first, at the last epoch."""
    network = family.last(family.rules, "network").sort_values("cosine_mean", ascending=False, kind="stable")
    note = (
        f"{family.when[0].upper()}{family.when[1:]}; mean over {family.batches} batches"
        f"{_and_seeds(family)}, ± standard deviation over batches. Empty where a gradient was 0."
    )
    return table_of(
        f"{name}-rules",
        "Each rule's gradient beside BPTT's",
        [*_rule_columns(family), _LOWEST_LAYER],
        network.to_dict("records"),
        [note],
    )


def _rules_by_layer(family: GradientFamily, name: str) -> Table:
    rows = family.last(family.rules, "layer").sort_values(["compared_method", "depth"], kind="stable")
    title = "Each rule's gradient beside BPTT's, layer by layer"
    columns = [*_rule_columns(family), _field_column("name")]
    return table_of(f"{name}-rules-layers", title, columns, rows.to_dict("records"), secondary=True)


def _rule_columns(family: GradientFamily) -> list[Column[Any]]:
    """What every table of rules begins with."""
    return [
        *map(_field_column, [*_varied(family), "compared_method"]),
        _measured_column("cosine with BPTT", "cosine", _cosine),
        _measured_column("norm ÷ BPTT", "norm_ratio"),
    ]


def _operations(family: GradientFamily, name: str) -> Table:
    fields = [field for field in POINT if field in family.operations]
    columns = [
        *map(_field_column, [*fields, "counted_method"]),
        _count_column("forward", "forward_multiplications"),
        _count_column("backward in space", "spatial_multiplications"),
        _count_column("backward through time", "temporal_multiplications"),
        (Heading("share of the backward pass", "%"), _share_through_time),
    ]
    rows = family.operations.sort_values(fields, kind="stable").to_dict("records")
    note = (
        "Multiplications for one sample and all T steps, counted as an iteration runs on the backend "
        "`reference`: matrix products, convolutions and elementwise products; normalisation is not counted."
    )
    title = "Multiplications, counted"
    return table_of(f"{name}-operations", title, columns, rows, [note], secondary=True)


def _count_column(heading: str, field: str) -> Column[Any]:
    def cell(row: Any) -> TableCell:
        per_sample = row[field] / row["samples"]
        return TableCell(significant(per_sample, 4), value=per_sample)

    return Heading(heading), cell


def _share_through_time(row: Any) -> TableCell:
    spatial, temporal = row["spatial_multiplications"], row["temporal_multiplications"]
    return percent_cell(temporal / (spatial + temporal))


# Figures ----------------------------------------------------------------------------------------

_WORDS = {
    "timesteps": "T",
    "tau": "τ",
    "surrogate": "surrogate",
    "reset": "reset",
    "detach_reset": "detached reset",
    "epoch": "epochs",
    "compared_method": "rule",
    "counted_method": "method",
    "name": "layer",
}
_AXES = {
    "timesteps": "T, time steps",
    "tau": "τ, membrane time constant [steps]",
    "epoch": "epochs trained",
    "drawn": "K, steps with a gradient",
}
_EXAMPLES = {"timesteps": "timesteps=1,2,4,8", "tau": "tau=1.1,1.5,2.0,4.0"}


def _against(field: str, family: GradientFamily, name: str) -> Figure | MissingFigure:
    """The figure of cosine against T or τ."""
    title = f"Cosine against {_WORDS[field]}"
    drawn = _along(field, family.last(family.gradients, "network"))
    if drawn.empty:
        return MissingFigure(
            title,
            f"only one {_WORDS[field]} was looked at",
            f"sltt-bench analyze gradients {family.recipe} --over {_EXAMPLES[field]}",
        )
    caption = (
        f"{COSINE} {family.when}. {_fixed_words(family, drawn, but=(field,))}Mean over {family.batches} "
        f"batches{_and_seeds(family)}, bars one standard deviation over batches; dotted: no temporal part."
    )
    panels = [_panel("Whole network", drawn, field)]
    lowest = family.lowest_layer
    if lowest is not None:
        layers = family.last(family.gradients, "layer")
        panels.append(_panel(f"Layer {lowest}", _along(field, layers[layers["name"] == lowest]), field))
    return Figure(f"{name}-{field}", title, caption, draw_lines, lambda: tuple(panels))


def _along(field: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of points that have a sibling: one that differs from it in this field alone."""
    others = [other for other in POINT if other != field]
    return rows[rows.groupby(others)[field].transform("nunique") > 1]


_AGREEMENT = ((1.0, ""),)
"""Marked in plots of cosines: no temporal part."""
_OF_COSINES = Axis(COSINE, within=(-1.0, 1.0))


def _panel(
    title: str,
    rows: pd.DataFrame,
    x: str,
    quantity: str = "cosine",
    y: Axis = _OF_COSINES,
    levels: tuple[tuple[float, str], ...] = _AGREEMENT,
) -> Panel:
    """A line for each point of the grid but for what the x axis shows; points without a value are left out."""
    others = [field for field in POINT if field != x]
    differing = [field for field in others if rows[field].nunique() > 1]
    lines = []
    for _, members in rows.dropna(subset=[f"{quantity}_mean"]).groupby(others, sort=True):
        columns = members.sort_values(x)[[x, f"{quantity}_mean", f"{quantity}_std"]]
        xs, ys, spreads = columns.astype(float).to_numpy().T.tolist()
        lines.append(Line(_point_words(members.iloc[0], differing), xs, ys, spreads))
    ticks = tuple(sorted({x for line in lines for x in line.xs}))
    return Panel(title, Axis(_AXES[x], at=ticks), y, tuple(lines), levels)


def _heat_maps(family: GradientFamily, name: str) -> Figure | None:
    others = [field for field in POINT if field != "timesteps"]
    drawn = _along("timesteps", family.last(family.gradients, "layer"))
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
    steps = tuple(str(int(steps)) for steps in table.columns)
    return HeatMap(title, layers, steps, table.to_numpy(dtype=float), _AXES["timesteps"], COSINE, largest=1.0)


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
            panels.append(_panel(f"{words} {part}".strip(), own, "epoch"))
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
    squares = Axis("E‖(T/K)G − g_s‖² / ‖g_s‖²", logarithmic=True)
    below = rows[rows["drawn"] < steps]
    panels = (
        _panel("Relative variance", below, "drawn", "relative_variance", squares, ()),
        _panel(
            "Agreement with SLTT", rows, "drawn", "cosine_to_sltt", Axis("cosine(G, g_s)", within=(-1.0, 1.0))
        ),
    )
    if not all(panel.lines for panel in panels):
        return None
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
