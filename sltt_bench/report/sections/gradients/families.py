"""Analyses read back: sorted into families that differ in T and in the neuron alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.planning.studies import setting_words
from sltt_bench.report.groups import settings_of
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
CHECKPOINT = "weights from a checkpoint"


@dataclass(frozen=True)
class GradientFamily:
    """The analyses of one recipe that differ in T and in the neuron alone."""

    recipe: str
    settings: tuple[str, ...]
    """Where it or a sibling differs from the recipe, in words, but for the grid's axes."""
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
        """The recipe, and what was set otherwise than it has it in some family."""
        return f"{self.recipe} ({', '.join(self.settings)})" if self.settings else self.recipe

    def title_among(self, families: "Sequence[GradientFamily]") -> str:
        """The title, and what tells this family from others (itself may be among them) of the same title."""
        siblings = [family for family in families if family.title == self.title]
        own, *_ = stated = [(*each.conditions, counted(each.batches, "batch")) for each in (self, *siblings)]
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

    def varied(self, keep: Sequence[str] = ()) -> list[str]:
        """The fields of the grid that took several values, and those to keep in any case."""
        return [field for field in POINT if field in keep or len(self.values(field)) > 1]

    @property
    def mean_over(self) -> str:
        """What stands behind a mean: "4 batches and 3 seeds"; of one seed nothing is said."""
        seeds = f" and {self.seeds} seeds" if self.seeds > 1 else ""
        return counted(self.batches, "batch") + seeds

    @property
    def spread_over(self) -> str:
        """What a standard deviation is over, in words; there is nothing of how far seeds differ in it."""
        return "batches" + ", averaged over seeds" * (self.seeds > 1)

    def values(self, field: str) -> list[Any]:
        """The values that a field of the grid took."""
        return sorted(self.gradients[field].unique())

    @property
    def lowest_layer(self) -> str | None:
        """The layer with the lowest cosine, on average over the grid; None if no layer has any."""
        means = self.last(self.gradients, "layer").groupby("name", sort=False)["cosine_mean"].mean().dropna()
        return None if means.empty else str(means.idxmin())


def find_families(results: Results) -> list[GradientFamily]:
    """The analyses in families, ordered by recipe."""
    cells = results.cells[results.cells["kind"] == "analysis"]
    if cells.empty:
        return []
    each = zip(cells["run"], cells["cell_id"], strict=True)
    cells = cells.assign(held_fixed=[_held_fixed(results.runs[int(run)], str(cell)) for run, cell in each])
    family = ["recipe", "method", "device_name", "precision", "batch_size", "synthetic", "smoke"]
    tables = {file: rows_of(results, file) for file in FILES} | {EPOCHS_FILE: results.epochs}
    families = []
    set_otherwise: dict[str, dict[str, None]] = {}
    for cell in cells.to_dict("records"):
        fields = set_otherwise.setdefault(str(cell["recipe"]), {})
        overridden = results.runs[int(cell["run"])].cell(str(cell["cell_id"])).get("overrides", {})
        fields |= dict.fromkeys(key for key in overridden if key not in _SHOWN_ANYWAY)
    for _, members in cells.groupby([*family, "held_fixed"], sort=True):
        own = {file: table.merge(members[["run", "cell_id"]]) for file, table in tables.items()}
        if not own[GRADIENTS_FILE].empty:
            run, recipe = results.runs[int(members.iloc[0]["run"])], str(members.iloc[0]["recipe"])
            families.append(_family(run, members, own, tuple(set_otherwise[recipe])))
    return families


def _family(
    run: Run, cells: pd.DataFrame, tables: Mapping[str, pd.DataFrame], named: Sequence[str]
) -> GradientFamily:
    """The family of these cells, the first of them the run's, with their rows of each file. `named`: the recipe fields whose
    values it is named by, since some family of the recipe has them otherwise than the recipe."""
    first = cells.iloc[0]
    settings = _settings(run, str(first["cell_id"]), named)
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
            f"{counted(len(alike), 'cell')} did not finish: {status}, {reason}"
            for (status, reason), alike in failed
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


FILES = (GRADIENTS_FILE, DRAWS_FILE, OPERATIONS_FILE, METHOD_GRADIENTS_FILE)


def rows_of(results: Results, file: str) -> pd.DataFrame:
    """The rows of a file in all runs that belong to the last attempt of a cell."""
    return results.rows(file).merge(results.cells[["run", "cell_id", "attempt"]])


def _held_fixed(run: Run, cell_id: str) -> str:
    """What two cells must share to be points of one grid, and be looked at last after as many epochs: all but T and what
    POINT has of the neuron."""
    cell = run.cell(cell_id)
    settings = settings_of(run.recipe_of(cell_id), str(cell.get("backend")))
    left_out = ("timesteps", *(f"neuron.{field}" for field in POINT))
    shared = {key: value for key, value in settings.items() if key not in left_out}
    options = cell.get("options", {})
    # Tables and plots show the last epoch that was looked at: a point that was not looked at then would be in none.
    shared |= {"batches": options.get("batches"), "last": max(options.get("epochs") or [0])}
    shared |= {source: cell.get(source) for source in ("init", "needs")}
    return json.dumps(shared, sort_keys=True)


_SHOWN_ANYWAY = {"timesteps", "train.batch_size", *(f"neuron.{field}" for field in POINT)}


def _settings(run: Run, cell_id: str, named: Sequence[str]) -> tuple[str, ...]:
    """What a cell has of these fields, in words."""
    cell = run.cell(cell_id)
    known = settings_of(run.recipe_of(cell_id), str(cell.get("backend"))) | cell.get("overrides", {})
    words = [setting_words(field, known[field]) for field in named if field in known]
    return (*words, *[CHECKPOINT] * bool(cell.get("init")))
