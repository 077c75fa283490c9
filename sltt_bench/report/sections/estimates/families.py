"""Estimates read back: sorted into families, with what was measured of the same experiments."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.report.claims import HARMLESS, Claim, asks
from sltt_bench.report.document import Context
from sltt_bench.report.groups import Group, method_order, natural_order, settings_of
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import ESTIMATES_FILE
from sltt_bench.results.tables import Skipped


class Point(NamedTuple):
    """What the estimates of a family differ in, beside the method."""

    timesteps: int
    batch_size: int


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
    """Rows of estimates.csv, one for each T, batch size (whole numbers) and method, with `overrides` and
    `multiplications`."""
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
    def estimates(self) -> dict[tuple[Point, str], Mapping[Any, Any]]:
        """(T, batch size) and method → the estimate: column → value."""
        return {
            (Point(row["timesteps"], row["batch_size"]), row["method"]): row
            for row in self.rows.to_dict("records")
        }

    @cached_property
    def points(self) -> list[Point]:
        """(T, batch size), in rising order."""
        return sorted({point for point, _ in self.estimates})

    @property
    def as_published(self) -> bool:
        """Whether nothing but T and batch size departs from the recipe, on the backend of the equations."""
        overridden = {key for overrides in self.rows["overrides"] for key in overrides}
        reference = set(self.rows["backend"]) == {"reference"}
        return not self.smoke and reference and overridden <= {"timesteps", "train.batch_size"}

    @cached_property
    def home(self) -> Point:
        """The recipe's own T and batch size; if they were not estimated, the largest T."""
        own = [
            point
            for (point, _), row in self.estimates.items()
            if row["overrides"].keys().isdisjoint(("timesteps", "train.batch_size"))
        ]
        return max(own or self.points)

    @property
    def rooms(self) -> list[float]:
        """The sizes of memory, in bytes, for which it was asked what fits."""
        return sorted(self.rows["memory_bytes"].dropna().astype(float).unique())

    def value(self, point: Point, method: str, column: str) -> float | None:
        """A figure of that estimate, None where there is none."""
        value = self.estimates.get((point, method), {}).get(column)
        return None if pd.isna(value) else float(value)

    def ratio(self, point: Point, method: str, baseline: str, column: str) -> float | None:
        """A figure ÷ the baseline's at the same point, None where one of them is missing or 0."""
        value, reference = self.value(point, method, column), self.value(point, baseline, column)
        return None if value is None or not reference else value / reference


def find_families(context: Context) -> list[EstimateFamily]:
    """The estimates in families, full networks before smoke-sized ones."""
    results = context.results
    rows = estimate_rows(results)
    if rows.empty:
        return []
    rows = rows.astype({"timesteps": int, "batch_size": int})
    cells = results.cells[results.cells["kind"] == "estimate"]
    ok, failed = cells[cells["status"] == "ok"], cells[cells["status"] != "ok"]
    each = zip(ok["run"], ok["cell_id"], strict=True)
    recipes = [results.runs[int(run)].recipe_of(str(cell_id)) for run, cell_id in each]
    resolved = pd.Series(recipes, ok.index, dtype=object)
    ok = ok.assign(resolved=resolved, settings=list(map(_settings, recipes, ok["backend"])))
    families = []
    by = ["smoke", "recipe", "precision", "backend", "device", "schema_version", "settings"]
    for (smoke, recipe, precision, backend, device, _, settings), members in ok.groupby(by, sort=False):
        own = rows.merge(members[["run", "cell_id"]])
        newest = own.drop_duplicates(["timesteps", "batch_size", "method"], keep="last")
        if newest.empty:
            continue
        alike = (failed["recipe"] == recipe) & (failed["smoke"] == smoke) & (failed["backend"] == backend)
        # Each claim once, in the words of the newest.
        claims = {asks(claim): claim for read in members["resolved"] for claim in read.get("claims") or ()}
        families.append(
            EstimateFamily(
                recipe=str(recipe),
                settings=json.loads(str(settings)),
                conditions=_conditions(str(precision), str(backend), str(device), bool(smoke), newest),
                rows=newest,
                measured=_measured(context.groups, (recipe, precision, backend, settings)),
                claims=tuple(claims.values()),
                smoke=bool(smoke),
                again=len(own) - len(newest),
                failures=tuple(_failures(failed[alike])),
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
    overrides = [json.loads(text or "{}") for text in rows["overrides"]]
    heeded = [
        {key: value for key, value in own.items() if backend == "native" or "native." not in key}
        for own, backend in zip(overrides, rows["backend"], strict=True)
    ]
    rows["overrides"] = pd.Series(heeded, index=rows.index, dtype=object)
    rows["multiplications"] = rows[list(WORK)].astype(float).sum(axis=1, min_count=len(WORK))
    return rows.sort_values("started_utc", kind="stable").drop(columns="started_utc")


def not_shown(context: Context, families: Sequence[EstimateFamily]) -> Iterator[Skipped]:
    """Runs with estimates that failed in a recipe without any, or whose figures are missing: why."""
    results = context.results
    cells = results.cells[results.cells["kind"] == "estimate"]
    rows, shown = results.rows(ESTIMATES_FILE), {family.recipe for family in families}
    for number, of_run in cells.groupby("run"):
        path = str(results.runs[int(str(number))].path)
        ok = of_run["status"] == "ok"
        lost = of_run[ok & ~of_run["cell_id"].isin(rows.loc[rows["run"] == number, "cell_id"])]
        if len(lost):
            yield Skipped(
                path, f"{counted(len(lost), 'cell')} of kind estimate: no row in {ESTIMATES_FILE}, not shown"
            )
        for failure in _failures(of_run[~ok & ~of_run["recipe"].isin(shown)]):
            yield Skipped(path, failure)


def _failures(cells: pd.DataFrame) -> Iterator[str]:
    for reason, alike in cells.groupby("reason"):
        yield f"{counted(len(alike), 'cell')} could not be estimated: {reason}"


def _settings(recipe: Mapping[str, Any], backend: str) -> str:
    """As JSON: what must be equal for one experiment's memory: the recipe without what cannot change it."""
    left_out = {"timesteps", "train.batch_size", *HARMLESS["peak_memory"], "init_from"}
    settings = {key: value for key, value in settings_of(recipe, backend).items() if key not in left_out}
    return json.dumps(settings, sort_keys=True)


def _measured(groups: Sequence[Group], experiment: tuple[Any, ...]) -> pd.DataFrame:
    """Each figure of each method that was measured in the groups of an experiment: recipe, precision, backend, settings."""
    rows = []
    for group in groups:
        key = group.key
        same = experiment[:3] == (key.recipe, key.precision, key.backend)
        if same and experiment[3] == _settings(group.recipe, key.backend):
            rows += [
                (key.hardware, key.timesteps, key.batch_size, result.method, figure, stat.mean, stat.n)
                for result in group.finished
                for figure in MEASURED
                if (stat := group.stat(figure, result.method)) is not None
            ]
    columns = ["hardware", "timesteps", "batch_size", "method", "figure", "bytes", "seeds"]
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
