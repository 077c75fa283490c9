"""The report's part on estimates: cells of kind "estimate", with what was measured beside them.

An estimated number never enters a measured one. They meet in one figure and one table, where each
stands under its own name.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from sltt_bench.report import numbers
from sltt_bench.report.claims import (
    HARMLESS,
    claims_of_recipe,
    command_for,
    judge_estimated,
    statement,
    unfit_when,
)
from sltt_bench.report.document import (
    Block,
    Cell,
    Context,
    Contribution,
    Figure,
    Heading,
    Missing,
    Section,
    Table,
    Verdict,
)
from sltt_bench.report.groups import METRICS, flat, make_groups, method_order
from sltt_bench.report.numbers import DASH
from sltt_bench.report.plots.estimates import CAUSES, Bar, Points, draw_causes, draw_peaks
from sltt_bench.results.reader import Results
from sltt_bench.results.schema import ESTIMATES_FILE

WORK = {
    "forward_spatial_multiplications": "forward, in space",
    "forward_temporal_multiplications": "forward, in time",
    "backward_spatial_multiplications": "backward, in space",
    "backward_temporal_multiplications": "backward, in time",
}
MEASURED = ("peak_tensor_bytes", "peak_allocated_bytes")
"""What an estimate is set beside: the same quantity counted on real tensors, and the allocator's peak."""

_EMPTY = Cell(DASH, tone="muted")


@dataclass(frozen=True)
class Family:
    """Estimates of one recipe that differ in T, batch size and method alone."""

    recipe: str
    settings: Mapping[str, Any]
    """The resolved recipe with dotted keys, without T and batch size."""
    conditions: tuple[str, ...]
    rows: pd.DataFrame
    """Rows of estimates.csv, one for each T, batch size and method, with `overrides` and `multiplications`."""
    measured: pd.DataFrame
    """Figures of the same experiments that were run: timesteps, batch_size, method, figure, bytes, hardware."""
    claims: tuple[Mapping[str, Any], ...]
    smoke: bool
    again: int
    """Estimates that a newer one of the same cell replaced."""
    failures: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """In the order of tables and plots."""
        return sorted(self.rows["method"].unique(), key=method_order)

    @property
    def points(self) -> list[tuple[int, int]]:
        """(T, batch size), in rising order."""
        return sorted(
            {(int(t), int(b)) for t, b in zip(self.rows["timesteps"], self.rows["batch_size"], strict=True)}
        )

    @property
    def home(self) -> tuple[int, int]:
        """The recipe's own T and batch size; if they were not estimated, the largest T."""
        own = self.rows[
            self.rows["overrides"].map(lambda said: not ({"timesteps", "train.batch_size"} & set(said)))
        ]
        chosen = own if len(own) else self.rows
        last = chosen.sort_values(["timesteps", "batch_size"]).iloc[-1]
        return int(last["timesteps"]), int(last["batch_size"])

    def at(self, point: tuple[int, int], method: str) -> "pd.Series[Any] | None":
        """The estimate of a method at (T, batch size)."""
        rows = self.rows
        same = (rows["timesteps"] == point[0]) & (rows["batch_size"] == point[1]) & (rows["method"] == method)
        return rows[same].iloc[0] if same.any() else None

    def value(self, point: tuple[int, int], method: str, column: str) -> float | None:
        """A figure of that estimate, None where there is none."""
        row = self.at(point, method)
        return None if row is None or pd.isna(row[column]) else float(row[column])


def estimated(context: Context) -> Contribution:
    """Tables, plots and verdicts of all estimates."""
    families = find_families(context.results)
    verdicts = [verdict for family in families for verdict in judge(family)]
    return Contribution(
        sections=tuple(_section(family, name, context.baseline) for name, family in _named(families).items()),
        verdicts=tuple(verdicts),
        frames={ESTIMATES_FILE: _estimate_rows(context.results).drop(columns=["run", "overrides"])}
        if families
        else {},
        sentences=tuple(_sentences(families, context.baseline)),
        skipped=tuple(_without_rows(context.results)),
    )


# Reading ----------------------------------------------------------------------------------------


def find_families(results: Results) -> list[Family]:
    """The estimates in families, full networks before smoke-sized ones."""
    cells = results.cells[results.cells["kind"] == "estimate"]
    if cells.empty:
        return []
    rows = _estimate_rows(results)
    beside = _measured_figures(results)
    found = []
    keys = cells.assign(settings=[_settings_text(results, cell) for _, cell in cells.iterrows()])
    by = ["smoke", "recipe", "precision", "backend", "device", "schema_version", "settings"]
    for (smoke, recipe, precision, backend, device, _, settings), members in keys.groupby(by, sort=True):
        ok = members[members["status"] == "ok"]
        own = rows[
            pd.MultiIndex.from_frame(rows[["run", "cell_id"]]).isin(
                pd.MultiIndex.from_frame(ok[["run", "cell_id"]])
            )
        ]
        newest = own.drop_duplicates(["timesteps", "batch_size", "method"], keep="last")
        if newest.empty:
            continue
        fixed = json.loads(str(settings))
        found.append(
            Family(
                recipe=str(recipe),
                settings=fixed,
                conditions=_conditions(str(precision), str(backend), str(device), bool(smoke), newest),
                rows=newest.reset_index(drop=True),
                measured=_of_the_same_experiment(beside, str(recipe), str(precision), str(backend), fixed),
                claims=claims_of_recipe(_recipe(results, ok.iloc[0])),
                smoke=bool(smoke),
                again=len(own) - len(newest),
                failures=tuple(
                    f"{len(alike)} cells could not be estimated: {reason}"
                    for reason, alike in members[members["status"] != "ok"].groupby("reason")
                ),
            )
        )
    return found


def _estimate_rows(results: Results) -> pd.DataFrame:
    """estimates.csv of all runs, oldest first, with the overrides of each cell."""
    frames = [run.rows(ESTIMATES_FILE).assign(run=number) for number, run in enumerate(results.runs)]
    rows = pd.concat([frame for frame in frames if not frame.empty] or frames[:1], ignore_index=True)
    about = results.cells[["run", "cell_id", "attempt", "overrides", "started_utc"]]
    rows = rows.merge(about, on=["run", "cell_id", "attempt"])
    rows["overrides"] = rows["overrides"].map(lambda said: json.loads(said or "{}"))
    rows["multiplications"] = rows[list(WORK)].astype(float).sum(axis=1)
    return rows.sort_values("started_utc", kind="stable").drop(columns="started_utc")


def _without_rows(results: Results) -> Iterator[tuple[str, str]]:
    """Runs with estimates that are said to be there and are not."""
    cells = results.cells[(results.cells["kind"] == "estimate") & (results.cells["status"] == "ok")]
    for number, of_run in cells.groupby("run"):
        run = results.runs[int(str(number))]
        lost = ~of_run["cell_id"].isin(run.rows(ESTIMATES_FILE)["cell_id"])
        if lost.any():
            yield str(run.path), f"{lost.sum()} cells of kind estimate: no row in {ESTIMATES_FILE}, not shown"


def _recipe(results: Results, cell: Any) -> Mapping[str, Any]:
    return results.runs[int(cell["run"])].recipe_of(str(cell["cell_id"]))


_NOT_FIXED = ("timesteps", "train.batch_size")


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for one experiment's memory: the recipe without what cannot change it."""
    left_out = (*_NOT_FIXED, *HARMLESS["peak_memory"], "name", "init_from")
    settings = {key: value for key, value in flat(recipe).items() if key not in left_out}
    return {key: value for key, value in settings.items() if key.split(".")[0] not in ("smoke", "claims")}


def _settings_text(results: Results, cell: Any) -> str:
    return json.dumps(_settings(_recipe(results, cell)), sort_keys=True)


def _measured_figures(results: Results) -> pd.DataFrame:
    rows = [
        {
            "recipe": group.key.recipe, "precision": group.key.precision, "backend": group.key.backend,
            "settings": json.dumps(_settings(group.recipe), sort_keys=True), "hardware": group.key.hardware,
            "timesteps": group.key.timesteps, "batch_size": group.key.batch_size,
            "method": result.method, "figure": figure, "bytes": stat.mean, "seeds": stat.n,
        }
        for group in make_groups(results)
        for result in group.finished
        for figure in MEASURED
        if (stat := result.stat(figure)) is not None
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=_MEASURED_COLUMNS)


_MEASURED_COLUMNS = [
    "recipe", "precision", "backend", "settings", "hardware",
    "timesteps", "batch_size", "method", "figure", "bytes", "seeds",
]  # fmt: skip


def _of_the_same_experiment(
    measured: pd.DataFrame, recipe: str, precision: str, backend: str, settings: Mapping[str, Any]
) -> pd.DataFrame:
    same = (
        (measured["recipe"] == recipe)
        & (measured["precision"] == precision)
        & (measured["backend"] == backend)
        & (measured["settings"] == json.dumps(settings, sort_keys=True))
    )
    return measured[same]


def _conditions(
    precision: str, backend: str, device: str, smoke: bool, rows: pd.DataFrame
) -> tuple[str, ...]:
    words = ["estimated on fake tensors", f"for a run on {device}", precision, f"backend {backend}"]
    for column, word in (("timesteps", "T = "), ("batch_size", "batch ")):
        if rows[column].nunique() == 1:
            words.append(f"{word}{int(rows[column].iloc[0])}")
    return (*words, *["smoke-sized"] * smoke)


# Verdicts ---------------------------------------------------------------------------------------


def judge(family: Family) -> Iterator[Verdict]:
    """A verdict on each claim about memory or compute that these estimates speak of; the others are open."""
    for claim in family.claims:
        column = _CLAIMED.get(claim["metric"])
        found = None if column is None or family.smoke else _claimed_value(family, claim, column)
        if found is None:
            reason = "only estimated" if column is None else "no estimate of the claim's own experiment"
            yield Verdict(
                recipe=family.recipe, claim=claim, word="not measured", statement=statement(claim),
                reason=reason, command=command_for(claim, family.recipe),
            )  # fmt: skip
            continue
        point, value = found
        where = [word for word in family.conditions if not word.startswith(("T =", "batch"))]
        yield judge_estimated(
            claim,
            family.recipe,
            value,
            _FIGURES[column or ""],
            (*where, f"T = {point[0]}", f"batch {point[1]}"),
        )


_CLAIMED = {"peak_memory": "peak_tensor_bytes", "compute": "multiplications"}
_FIGURES = {"peak_tensor_bytes": "live tensors", "multiplications": "of one iteration"}


def _claimed_value(
    family: Family, claim: Mapping[str, Any], column: str
) -> tuple[tuple[int, int], float] | None:
    """The point that is the claim's experiment, and what the threshold is set against there."""
    for point in family.points:
        ours, theirs = family.at(point, claim["method"]), family.at(point, str(claim.get("baseline")))
        settings = {**family.settings, "timesteps": point[0], "train.batch_size": point[1]}
        if ours is None or unfit_when(claim, settings, ours["overrides"]):
            continue
        if claim["relation"] == "at_most_ratio":
            if theirs is not None:
                return point, float(ours[column]) / float(theirs[column])
        elif claim["relation"] in ("at_most", "at_least"):
            return point, float(ours[column])
    return None


# Words ------------------------------------------------------------------------------------------


def _sentences(families: Sequence[Family], baseline: str) -> Iterator[str]:
    """One sentence: what the estimates of full networks say at each recipe's own T and batch size."""
    said = []
    for family in [family for family in families if not family.smoke][:_MOST]:
        ratios = []
        for method in family.methods:
            memory, work = (_ratio(family, family.home, method, baseline, c) for c in _FIGURES)
            if method != baseline and memory is not None and work is not None:
                ratios.append(f"{method} {numbers.ratio(memory)} and {numbers.ratio(work)}")
        if ratios:
            steps, batch = family.home
            said.append(f"{family.recipe} (T = {steps}, batch {batch}) {', '.join(ratios)}")
    if said:
        yield (
            f"Estimated, not measured: live tensors and multiplications of an iteration against {baseline}: "
            f"{'; '.join(said)}."
        )


_MOST = 3


def _ratio(family: Family, point: tuple[int, int], method: str, baseline: str, column: str) -> float | None:
    ours, theirs = family.value(point, method, column), family.value(point, baseline, column)
    return None if ours is None or not theirs else ours / theirs


# Sections ---------------------------------------------------------------------------------------


def _named(families: Sequence[Family]) -> dict[str, Family]:
    """The families by the name of their section."""
    names: dict[str, Family] = {}
    for family in families:
        same = sum(other.recipe == family.recipe for other in names.values())
        names[f"estimate-{family.recipe}" + (f"-{same + 1}" if same else "")] = family
    return names


def _section(family: Family, name: str, baseline: str) -> Section:
    blocks: list[Block] = [_pivot(family, name, baseline, "peak_tensor_bytes")]
    blocks += _figures(family, name)
    blocks.append(_pivot(family, name, baseline, "multiplications"))
    for column in ("largest_batch_size", "largest_timesteps", "epoch_lower_bound_s"):
        if family.rows[column].notna().any() or (
            column == "largest_timesteps" and family.rows["memory_bytes"].notna().any()
        ):
            blocks.append(_pivot(family, name, baseline, column))
    if len(family.measured):
        blocks.append(_beside(family, name))
    blocks += [_by_cause(family, name), _by_part(family, name)]
    lead = [
        "One training iteration of the real network at its real size on tensors without values: exact counts "
        "of live tensor bytes and of multiplications, not measurements. An allocator needs more than live tensors."
    ]
    return Section(
        name,
        f"Estimated: {family.recipe}",
        tuple(blocks),
        tuple(lead),
        chips=family.conditions,
        folded=family.smoke,
    )


def _pivot(family: Family, name: str, baseline: str, column: str) -> Table:
    """A row for each T and batch size, a column for each method."""
    look = _PIVOTS[column]
    values = family.rows[column].dropna().astype(float)
    scale = look.scale(list(values))
    varied = [(field, heading) for field, heading in _POINT if family.rows[field].nunique() > 1]
    methods = family.methods
    rows = []
    for point in family.points:
        where = dict(zip(("timesteps", "batch_size"), point, strict=True))
        cells = [Cell(str(where[field]), value=where[field]) for field, _ in varied]
        for method in methods:
            value = family.value(point, method, column)
            if value is None:
                cells.append(_absent(family, point, method, column))
                continue
            ratio = (
                _ratio(family, point, method, baseline, column)
                if look.compared and method != baseline
                else None
            )
            cells.append(Cell(scale.number(value), "" if ratio is None else numbers.ratio(ratio), value))
        rows.append(tuple(cells))
    notes = [look.note(family)]
    if look.compared and baseline in methods:
        notes.append(f"×: ratio to {baseline}.")
    if column == "peak_tensor_bytes":
        notes += [f"{failure}." for failure in family.failures]
        notes += [f"{family.again} older estimates of the same cells do not count."] * (family.again > 0)
    headings = [*(Heading(word) for _, word in varied), *(Heading(method, scale.unit) for method in methods)]
    return Table(f"{name}-{look.name}", look.title, tuple(headings), tuple(rows), tuple(notes))


_POINT = (("timesteps", "T"), ("batch_size", "batch"))


def _absent(family: Family, point: tuple[int, int], method: str, column: str) -> Cell:
    searched = family.value(point, method, "memory_bytes")
    return Cell("no limit met") if column == "largest_timesteps" and searched is not None else _EMPTY


@dataclass(frozen=True)
class _Pivot:
    name: str
    title: str
    scale: Callable[[Sequence[float]], numbers.Scale]
    compared: bool
    note: Callable[[Family], str]


_COUNT = numbers.Scale(1, "")
_PIVOTS = {
    "peak_tensor_bytes": _Pivot(
        "memory", "Peak of live tensors, estimated", partial(numbers.scale_for, "bytes"), True,
        lambda family: "Of one training iteration, in the steady state.",
    ),
    "multiplications": _Pivot(
        "work", "Multiplications of one training iteration, estimated", partial(numbers.scale_for, "count"), True,
        lambda family: "Forward and backward; SLTT-K passes backward at K of T steps.",
    ),
    "largest_batch_size": _Pivot(
        "largest-batch", "Largest batch that fits, estimated", lambda _: _COUNT, False,
        lambda family: f"At the row's T, into {_room(family)}.",
    ),
    "largest_timesteps": _Pivot(
        "largest-t", "Largest T that fits, estimated", lambda _: _COUNT, False,
        lambda family: f"At the row's batch, into {_room(family)}; searched up to T = 64.",
    ),
    "epoch_lower_bound_s": _Pivot(
        "time", "Lower bound on an epoch's training time", partial(numbers.scale_for, "s"), False,
        lambda family: f"{', '.join(sorted(set(family.rows['gpu']) - {''}))}, from its data sheet: no run can be "
        "faster, every run is slower.",
    ),
}  # fmt: skip


def _room(family: Family) -> str:
    rooms = sorted(family.rows["memory_bytes"].dropna().astype(float).unique())
    return " or ".join(numbers.scale_for("bytes", [room]).text(room) for room in rooms) + ", margin taken off"


def _beside(family: Family, name: str) -> Table:
    """Estimated and measured figures of the same experiment, each under its own name."""
    rows = []
    for keys, same in family.measured.groupby(["timesteps", "batch_size", "method", "hardware"], sort=True):
        steps, batch, method, hardware = (str(key) for key in keys)
        estimate = family.value((int(steps), int(batch)), method, "peak_tensor_bytes")
        if estimate is None:
            continue
        figures = dict(zip(same["figure"], same["bytes"], strict=True))
        cells = [Cell(steps, value=int(steps)), Cell(batch, value=int(batch))]
        cells += [Cell(method, value=method), Cell(_bytes(estimate), value=estimate)]
        for figure in MEASURED:
            value = figures.get(figure)
            beside = "" if value is None else f"{value / estimate:.3f} of the estimate"
            cells.append(_EMPTY if value is None else Cell(_bytes(value), beside, value))
        rows.append((*cells, Cell(hardware, value=hardware)))
    headings = (
        Heading("T"), Heading("batch"), Heading("method", numeric=False), Heading("estimated live tensors"),
        *(Heading(f"measured: {METRICS[figure].label}") for figure in MEASURED), Heading("on", numeric=False),
    )  # fmt: skip
    return Table(f"{name}-measured", "Estimated beside measured", headings, tuple(rows), _BESIDE_NOTES)


_BESIDE_NOTES = (
    "Live tensors count the same quantity on real tensors. The allocator rounds each block up, fragments, and "
    "lends cuDNN its workspaces.",
)


def _bytes(value: float) -> str:
    return numbers.scale_for("bytes", [value]).text(value)


def _by_cause(family: Family, name: str) -> Table:
    """What the peak consists of."""
    return _parts_table(
        family, f"{name}-causes", "What the peak consists of", "bytes",
        [*((label, list(columns)) for label, columns in CAUSES.items()), ("peak", ["peak_tensor_bytes"])],
        ("The causes add up to the peak.",),
    )  # fmt: skip


def _by_part(family: Family, name: str) -> Table:
    """Where the multiplications are made."""
    return _parts_table(
        family, f"{name}-parts", "Where the multiplications are made", "count",
        [*((label, [column]) for column, label in WORK.items()), ("all", list(WORK)), ("an epoch", ["epoch_multiplications"])],
        ("In time: what the past costs, beyond as many first steps.",),
    )  # fmt: skip


def _parts_table(
    family: Family,
    name: str,
    title: str,
    unit: Any,
    parts: Sequence[tuple[str, list[str]]],
    notes: tuple[str, ...],
) -> Table:
    rows = []
    for point in family.points:
        for method in family.methods:
            row = family.at(point, method)
            if row is None:
                continue
            cells = [
                Cell(str(point[0]), value=point[0]),
                Cell(str(point[1]), value=point[1]),
                Cell(method, value=method),
            ]
            for _, columns in parts:
                value = float(sum(float(row[column]) for column in columns))
                cells.append(Cell(numbers.scale_for(unit, [value]).text(value), value=value))
            rows.append(tuple(cells))
    headings = [
        Heading("T"),
        Heading("batch"),
        Heading("method", numeric=False),
        *(Heading(label) for label, _ in parts),
    ]
    return Table(name, title, tuple(headings), tuple(rows), notes, secondary=True)


# Figures ----------------------------------------------------------------------------------------


def _figures(family: Family, name: str) -> list[Block]:
    panels = [points for points in (_against(family, 0), _against(family, 1)) if points is not None]
    blocks: list[Block] = []
    if panels:
        blocks.append(
            Figure(
                f"{name}-memory", "Estimated peak memory", _peaks_caption(family), partial(draw_peaks, panels)
            )
        )
    if len(panels) < 2:
        there = {points.against for points in panels}
        blocks += [
            Missing(
                f"Estimated memory against {word}",
                f"estimated at one {word} alone",
                f"sltt-bench estimate {family.recipe} {option}",
            )
            for field, word, option in _SWEEPS
            if field not in there
        ]
    bars = [
        Bar(method, {label: sum(float(row[c]) for c in columns) for label, columns in CAUSES.items()})
        for method in family.methods
        if (row := family.at(family.home, method)) is not None
    ]
    steps, batch = family.home
    caption = (
        f"What the estimated peak of live tensors consists of at T = {steps}, batch {batch}. Estimated, not "
        f"measured; {', '.join(family.conditions)}."
    )
    blocks.append(Figure(f"{name}-causes", "What takes the memory", caption, partial(draw_causes, bars)))
    return blocks


_SWEEPS = (
    ("timesteps", "T", "--timesteps 1,2,4,6,8"),
    ("batch_size", "batch size", "--batch-size 64,128,256"),
)


def _against(family: Family, axis: int) -> Points | None:
    """The peaks along T (axis 0) or batch size (axis 1), the other one held at the recipe's own."""
    fixed = family.home[1 - axis]
    along = sorted({point[axis] for point in family.points if point[1 - axis] == fixed})
    if len(along) < 2:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for method in family.methods:
        for value in along:
            point = (value, fixed) if axis == 0 else (fixed, value)
            if (peak := family.value(point, method, "peak_tensor_bytes")) is not None:
                lines.setdefault(method, []).append((value, peak))
    field, other = (_SWEEPS[axis][0], _SWEEPS[1 - axis][0])
    seen = family.measured[family.measured[other] == fixed]
    return Points(
        against=field,
        fixed=f"batch {fixed}" if axis == 0 else f"T = {fixed}",
        estimated={method: tuple(points) for method, points in lines.items()},
        measured={
            figure: {
                str(method): tuple(zip(rows[field].astype(float), rows["bytes"].astype(float), strict=True))
                for method, rows in seen[seen["figure"] == figure].groupby("method")
            }
            for figure in MEASURED
            if (seen["figure"] == figure).any()
        },
        rooms=tuple(sorted(family.rows["memory_bytes"].dropna().astype(float).unique())),
    )


def _peaks_caption(family: Family) -> str:
    parts = ["Dashed, hollow marks: estimated peak of live tensors."]
    if len(family.measured):
        hardware = ", ".join(sorted(family.measured["hardware"].unique()))
        parts.append(
            f"Filled marks: measured on {hardware}, mean of {int(family.measured['seeds'].min())} or more seeds."
        )
    else:
        parts.append("Nothing of it was measured.")
    return " ".join([*parts, f"{', '.join(family.conditions)}."])
