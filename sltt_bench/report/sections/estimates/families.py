"""Estimates read back: sorted into families, with what was measured of the same experiments."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from sltt_bench.report.claims import HARMLESS, Claim, asks, claims_of_recipe
from sltt_bench.report.document import Context
from sltt_bench.report.groups import Group, method_order, natural_order, settings_of
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import ESTIMATES_FILE

Point = tuple[int, int]
"""T and batch size."""

WORK = {
    "forward_spatial_multiplications": "forward, in space",
    "forward_temporal_multiplications": "forward, in time",
    "backward_spatial_multiplications": "backward, in space",
    "backward_temporal_multiplications": "backward, in time",
}
"""Column → what its multiplications are made for."""
CAUSES: dict[str, tuple[str, ...]] = {
    "weights": ("parameter_bytes", "optimizer_state_bytes", "gradient_bytes"),
    "inputs": ("input_bytes",),
    "neuron state": ("neuron_state_bytes",),
    "saved activations": ("activation_bytes",),
    "temporaries": ("temporary_bytes",),
}
"""Causes of live tensors as they are drawn and listed → columns of estimates.csv."""
MEASURED = ("peak_tensor_bytes", "peak_allocated_bytes")
"""What an estimate is set beside: the same quantity counted on real tensors, and the allocator's peak."""


@dataclass(frozen=True)
class EstimateFamily:
    """Estimates of one recipe that differ in T, batch size and method alone."""

    recipe: str
    settings: Mapping[str, Any]
    """The resolved recipe with dotted keys, without T and batch size."""
    conditions: tuple[str, ...]
    rows: pd.DataFrame
    """Rows of estimates.csv, one for each T, batch size and method, with `overrides` and `multiplications`."""
    measured: pd.DataFrame
    """Figures of the same experiments that were run: timesteps, batch_size, method, figure, bytes, hardware."""
    claims: tuple[Claim, ...]
    smoke: bool
    again: int
    """Estimates that a newer one of the same cell replaced."""
    failures: tuple[str, ...]

    @cached_property
    def methods(self) -> list[str]:
        """In the order of tables and plots."""
        return sorted(self.rows["method"].unique(), key=method_order)

    @cached_property
    def points(self) -> list[Point]:
        """(T, batch size), in rising order."""
        return sorted(
            {(int(t), int(b)) for t, b in zip(self.rows["timesteps"], self.rows["batch_size"], strict=True)}
        )

    @property
    def as_published(self) -> bool:
        """Whether nothing but T and batch size departs from the recipe, on the backend of the equations."""
        overridden = {key for overrides in self.rows["overrides"] for key in overrides}
        reference = set(self.rows["backend"]) == {"reference"}
        return not self.smoke and reference and overridden <= {"timesteps", "train.batch_size"}

    @cached_property
    def home(self) -> Point:
        """The recipe's own T and batch size; if they were not estimated, the largest T."""
        own = self.rows[
            self.rows["overrides"].map(
                lambda overrides: not ({"timesteps", "train.batch_size"} & set(overrides))
            )
        ]
        chosen = own if len(own) else self.rows
        last = chosen.sort_values(["timesteps", "batch_size"]).iloc[-1]
        return int(last["timesteps"]), int(last["batch_size"])

    def at(self, point: Point, method: str) -> Mapping[Any, Any] | None:
        """The estimate of a method at (T, batch size): column → value."""
        return self._by_place.get((point, method))

    @cached_property
    def _by_place(self) -> dict[tuple[Point, str], Mapping[Any, Any]]:
        """Tables and figures ask thousands of times, which a search of the rows would answer in milliseconds each."""
        return {
            ((int(row["timesteps"]), int(row["batch_size"])), str(row["method"])): row
            for row in self.rows.to_dict("records")
        }

    def value(self, point: Point, method: str, column: str) -> float | None:
        """A figure of that estimate, None where there is none."""
        row = self.at(point, method)
        return None if row is None or pd.isna(row[column]) else float(row[column])

    def ratio(self, point: Point, method: str, baseline: str, column: str) -> float | None:
        """A figure ÷ the baseline's at the same point, None where one of them is missing or 0."""
        value, reference = self.value(point, method, column), self.value(point, baseline, column)
        return None if value is None or not reference else value / reference


def find_families(context: Context) -> list[EstimateFamily]:
    """The estimates in families, full networks before smoke-sized ones."""
    results = context.results
    cells = results.cells[(results.cells["kind"] == "estimate") & (results.cells["status"] == "ok")]
    rows = estimate_rows(results)
    if rows.empty:
        return []
    failed = _failures(results)
    beside = _measured_figures(context.groups)
    cells = cells.assign(settings=[_settings_of(results, cell) for _, cell in cells.iterrows()])
    families = []
    by = ["smoke", "recipe", "precision", "backend", "device", "schema_version", "settings"]
    for (smoke, recipe, precision, backend, device, _, settings), members in cells.groupby(by, sort=False):
        own = _belonging(rows, members)
        newest = own.drop_duplicates(["timesteps", "batch_size", "method"], keep="last")
        if newest.empty:
            continue
        same = (str(recipe), str(precision), str(backend), str(settings))
        families.append(
            EstimateFamily(
                recipe=str(recipe),
                settings=json.loads(str(settings)),
                conditions=_conditions(str(precision), str(backend), str(device), bool(smoke), newest),
                rows=newest.reset_index(drop=True),
                measured=beside[[other == same for other in beside["experiment"]]] if len(beside) else beside,
                claims=_claims(results, members),
                smoke=bool(smoke),
                again=len(own) - len(newest),
                failures=failed.get((str(recipe), bool(smoke), str(backend)), ()),
            )
        )
    return sorted(
        families, key=lambda f: (f.smoke, natural_order(f.recipe), not f.as_published, f.conditions)
    )


def estimate_rows(results: Results) -> pd.DataFrame:
    """estimates.csv of all runs, oldest first, with the overrides of each cell that its backend heeds, and all multiplications."""
    rows = results.rows(ESTIMATES_FILE)
    about = results.cells[["run", "cell_id", "attempt", "overrides", "started_utc"]]
    rows = rows.merge(about, on=["run", "cell_id", "attempt"])
    heeded = [
        {
            key: value
            for key, value in json.loads(text or "{}").items()
            if backend == "native" or "native." not in key
        }
        for text, backend in zip(rows["overrides"], rows["backend"], strict=True)
    ]
    rows["overrides"] = pd.Series(heeded, index=rows.index, dtype=object)
    rows["multiplications"] = rows[list(WORK)].astype(float).sum(axis=1, min_count=len(WORK))
    return rows.sort_values("started_utc", kind="stable").drop(columns="started_utc")


def not_shown(context: Context, families: Sequence[EstimateFamily]) -> Iterator[tuple[str, str]]:
    """Runs with estimates that failed in a recipe without any, or whose figures are missing: why."""
    results = context.results
    cells = results.cells[results.cells["kind"] == "estimate"]
    rows, shown = results.rows(ESTIMATES_FILE), {family.recipe for family in families}
    for number, of_run in cells.groupby("run"):
        path = str(results.runs[int(str(number))].path)
        ok = of_run["status"] == "ok"
        lost = of_run[ok & ~of_run["cell_id"].isin(rows.loc[rows["run"] == number, "cell_id"])]
        if len(lost):
            yield path, f"{len(lost)} cells of kind estimate: no row in {ESTIMATES_FILE}, not shown"
        for reason, alike in of_run[~ok & ~of_run["recipe"].isin(shown)].groupby("reason"):
            yield path, f"{len(alike)} cells could not be estimated: {reason}"


def _belonging(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    key = ["run", "cell_id"]
    return rows[pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(cells[key]))]


def _failures(results: Results) -> dict[tuple[str, bool, str], tuple[str, ...]]:
    """Recipe, smoke-sized or not, and backend → what could not be estimated and why."""
    cells = results.cells[(results.cells["kind"] == "estimate") & (results.cells["status"] != "ok")]
    return {
        (str(recipe), bool(smoke), str(backend)): tuple(
            f"{len(alike)} cells could not be estimated: {reason}"
            for reason, alike in members.groupby("reason")
        )
        for (recipe, smoke, backend), members in cells.groupby(["recipe", "smoke", "backend"])
    }


def _recipe(results: Results, cell: Any) -> Mapping[str, Any]:
    return results.runs[int(cell["run"])].recipe_of(str(cell["cell_id"]))


def _claims(results: Results, cells: pd.DataFrame) -> tuple[Claim, ...]:
    """The claims of all recipes that were estimated, each once, in the words of the newest."""
    claims: dict[str, Claim] = {}
    for _, cell in cells.iterrows():
        claims |= {asks(claim): claim for claim in claims_of_recipe(_recipe(results, cell))}
    return tuple(claims.values())


def _settings_of(results: Results, cell: Any) -> str:
    return _settings(_recipe(results, cell), str(cell["backend"]))


def _settings(recipe: Mapping[str, Any], backend: str) -> str:
    """As JSON: what must be equal for one experiment's memory: the recipe without what cannot change it."""
    left_out = {"timesteps", "train.batch_size", *HARMLESS["peak_memory"], "init_from"}
    settings = {key: value for key, value in settings_of(recipe, backend).items() if key not in left_out}
    return json.dumps(settings, sort_keys=True)


def _measured_figures(groups: Sequence[Group]) -> pd.DataFrame:
    """What was measured, with the experiment that it was measured in, as a family names it."""
    rows = [
        {
            "experiment": (
                group.key.recipe, group.key.precision, group.key.backend, _settings(group.recipe, group.key.backend),
            ),
            "hardware": group.key.hardware, "timesteps": group.key.timesteps, "batch_size": group.key.batch_size,
            "method": result.method, "figure": figure, "bytes": stat.mean, "seeds": stat.n,
        }
        for group in groups
        for result in group.finished
        for figure in MEASURED
        if (stat := result.stat(figure)) is not None
    ]  # fmt: skip
    columns = ["experiment", "hardware", "timesteps", "batch_size", "method", "figure", "bytes", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _conditions(
    precision: str, backend: str, device: str, smoke: bool, rows: pd.DataFrame
) -> tuple[str, ...]:
    words = ["estimated on fake tensors", f"for a run on {device}", precision, f"backend {backend}"]
    for column, word in (("timesteps", "T = "), ("batch_size", "batch ")):
        if rows[column].nunique() == 1:
            words.append(f"{word}{int(rows[column].iloc[0])}")
    divided = [int(ranks) for ranks in rows["ranks"].dropna().unique() if ranks > 1]
    words += [f"each batch divided over {ranks} processes, figures of one" for ranks in divided]
    return (*words, *["smoke-sized"] * smoke)
