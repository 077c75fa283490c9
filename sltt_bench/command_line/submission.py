"""Checks results against the rules for submissions (docs/rules.md): `submission check`.

Each rule is a function of the results that were read; it says what is wrong and what to do. Nothing is run
again.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.methods import UnknownMethod
from sltt_bench.planning.plan import cell_from_dict
from sltt_bench.planning.recipe import load_recipe, recipe_from_dict
from sltt_bench.planning.recipe_faults import RecipeError
from sltt_bench.planning.recipe_fields import NOT_DECISIVE, NOT_DECISIVE_OF_TRAIN, Recipe, section_of
from sltt_bench.planning.recipe_files import recipe_names
from sltt_bench.report.consistency import MeasuredCell, contradictions
from sltt_bench.report.grouping import UNSOUND, make_groups
from sltt_bench.report.groups import Group, MethodResult, differing_fields
from sltt_bench.results.cell_row import Outcome, cell_key, circumstances
from sltt_bench.results.reader import Results, read_results
from sltt_bench.results.writer import ResultsError

MINIMUM_SEEDS = 3
MAXIMUM_FILE_BYTES = 5_000_000
_PRIVATE = re.compile(r"(/home/|/Users/|/root/|[A-Z]:\\+Users\\+)[^\s\"',]*")


@dataclass(frozen=True)
class RuleBreach:
    """One violation of a rule."""

    rule: str
    where: str
    text: str


def check(folders: list[Path]) -> list[RuleBreach]:
    """Returns every breach of every rule. Raises ResultsError for a folder without results."""
    results = read_results(folders)
    if _runs(results).empty:
        raise ResultsError(
            f"{folders[0]}: no cell that was run is here{results.reasons}; `sltt-bench run RECIPE` makes results"
        )
    return [
        RuleBreach(rule, where, text) for rule, function in RULES.items() for where, text in function(results)
    ]


Findings = Iterator[tuple[str, str]]
"""(where, what is wrong and what to do)"""


def _readable(results: Results) -> Findings:
    for skipped in results.skipped:
        yield skipped.path, f"{skipped.reason}; a submission holds whole files only"


def _provenance(results: Results) -> Findings:
    for run in results.runs:
        facts = run.provenance
        if not facts.get("git_revision") and not facts.get("sltt_bench"):
            yield str(run.path), "provenance.json names neither a version nor a revision of the code"
        elif facts.get("git_dirty"):
            yield str(run.path), "ran with uncommitted changes; commit them, so that the revision is what ran"
        if not (facts.get("packages") or {}).get("torch"):
            yield str(run.path), "provenance.json does not name torch's version"


def _cells_as_resolved(results: Results) -> Findings:
    for _, row in _runs(results).iterrows():
        resolved = results.runs[int(row["run"])].cell(str(row["cell_id"]))
        if not resolved:
            yield _name(row), f"cells/{row['cell_id']}.json is missing: nobody can tell what was run"
            continue
        try:
            cell = cell_from_dict(dict(resolved))
            told = {**cell_key(cell, Outcome("ok")), **circumstances(cell, Outcome("ok"))}
        except (RecipeError, UnknownMethod, TypeError, KeyError) as error:
            yield _name(row), f"cells/{row['cell_id']}.json is no cell: {str(error).splitlines()[0]}"
            continue
        other = [name for name in _RESOLVED if row[name] != told[name]]
        if other:
            yield _name(row), f"cells/{row['cell_id']}.json is another cell than its row ({', '.join(other)})"


_RESOLVED = (
    "cell_id", "recipe_hash", "recipe", "method", "backend", "timesteps", "batch_size", "seed", "synthetic", "smoke", "overrides",
)  # fmt: skip
"""Columns of a row that are known before its cell has run."""


def _untouched_recipe(results: Results) -> Findings:
    for (number, name), cells in _runs(results).groupby(["run", "recipe"]):
        run, recipe = results.runs[int(str(number))], str(name)
        where = str(run.path)
        if recipe not in recipe_names():
            yield where, f"{recipe} is no shipped recipe; a pull request with it comes first"
            continue
        changed: dict[str, None] = {}
        # The folder's own recipe too, since readers see it first and take it for what ran.
        for fields in (*map(run.recipe_of, cells["cell_id"]), run.recipe):
            try:
                resolved = recipe_from_dict({**fields, "name": recipe})
            except RecipeError as error:
                yield where, f"its recipe cannot be read: {str(error).splitlines()[0]}"
                break
            changed |= dict.fromkeys(_differences(resolved, load_recipe(recipe)))
        if changed:
            yield where, f"the recipe was changed ({', '.join(changed)}); a study of these is no submission"


def _data_are_real(results: Results) -> Findings:
    for _, cell in _runs(results).iterrows():
        for flag in ("smoke", "synthetic"):
            if cell[flag] is True or cell[flag] == "true":
                yield _name(cell), f"--{flag} runs show that something works, not how well"


def _enough_seeds(results: Results) -> Findings:
    """Count seeds within each group of the report, since no mean is over several groups."""
    experiments: dict[tuple[str, ...], list[Group]] = {}
    for group in make_groups(results):
        key = group.key
        for method in group.methods:
            experiment = (key.recipe, key.recipe_hash, method, key.backend, key.hardware)
            experiments.setdefault(experiment, []).append(group)
    for (recipe, _, method, backend, _), groups in experiments.items():
        for text in _seeds_lacking(method, groups):
            yield f"{recipe}, {method}, backend {backend}", text


def _seeds_lacking(method: str, groups: Sequence[Group]) -> Iterator[str]:
    """Yields what the cells of one method on one device lack; `groups`: all report groups that hold them."""
    seeds_of_groups = [_seeds(group.methods[method]) for group in groups]
    everything = set().union(*(begun for begun, _ in seeds_of_groups))
    # A cell that ended before it reported what it ran with may be in a group of its own. So groups without
    # a finished cell count only if no group has one, and then all together.
    with_finished = [seeds for seeds in seeds_of_groups if seeds[1]] or [(everything, set[int]())]
    apart = ", ".join(differing_fields(groups))
    for begun, finished in with_finished:
        if len(begun) < MINIMUM_SEEDS:
            within = (
                f" of {len(everything)} under the same conditions ({apart})" if begun < everything else ""
            )
            yield f"{counted(len(begun), 'seed')}{within}; at least {MINIMUM_SEEDS} are needed: --seed 0,1,2"
        elif 0 < len(finished) < MINIMUM_SEEDS:
            needed = f"at least {MINIMUM_SEEDS} are needed, or none: --seed 0,1,2,3,4"
            yield f"{len(finished)} of {len(begun)} seeds finished; {needed}"


def _seeds(result: MethodResult) -> tuple[set[int], set[int]]:
    """Returns the seeds that began, and those whose cells finished (whether sound is another rule)."""
    unsound = {seed for failure in result.failures if failure.status == UNSOUND for seed in failure.seeds}
    finished = {*result.seeds, *unsound}
    return {*finished, *result.lost_seeds}, finished


def _failures_included(results: Results) -> Findings:
    for number, run in enumerate(results.runs):
        there = set(results.cells.loc[results.cells["run"] == number, "cell_id"])
        plan = run.provenance.get("plan") or []
        missing = [cell for cell in plan if cell not in there]
        if not plan and there:
            yield (
                str(run.path),
                "provenance.json does not say which cells were planned; nobody knows what is missing",
            )
        if missing:
            text = f"{len(missing)} planned cells have no row; --resume finishes or records them"
            yield str(run.path), text


def _every_epoch(results: Results) -> Findings:
    rows = results.epochs.groupby(["run", "cell_id"])["epoch"].nunique()
    for _, cell in _runs(results).iterrows():
        done = rows.get((cell["run"], cell["cell_id"]), 0)
        if cell["status"] == "ok" and done != cell["epochs_planned"]:
            yield _name(cell), f"{done} of {counted(float(cell['epochs_planned']), 'epoch')} have a row"


def _figures_follow(results: Results) -> Findings:
    """Compare figures that follow from others; someone who edits one by hand leaves the others unchanged."""
    epochs = dict(iter(results.epochs.groupby(["run", "cell_id"])))
    for _, row in _runs(results).iterrows():
        rows = epochs.get((row["run"], row["cell_id"]))
        if rows is None or row["status"] != "ok" or len(rows) != row["epochs_planned"]:
            continue  # another rule says that epochs are missing
        for text in contradictions(
            MeasuredCell(row, rows.sort_values("epoch"), results.runs[int(row["run"])])
        ):
            yield _name(row), text


def _sound(results: Results) -> Findings:
    for group in make_groups(results):
        for result in group.methods.values():
            for failure in result.failures:
                if failure.status == UNSOUND:
                    yield f"{group.key.recipe}, {result.method}", f"contradicts itself: {failure.reason}"
        for breach in group.breaches:
            if breach.blocks:
                yield group.key.recipe, f"a report compares nothing of this: {breach.text}"


def _hardware_named(results: Results) -> Findings:
    for _, cell in _runs(results).iterrows():
        if cell["status"] == "ok" and not (isinstance(cell["device_name"], str) and cell["device_name"]):
            yield _name(cell), "device_name is empty: on what was it measured?"


def _names_nobody(results: Results) -> Findings:
    for path in _files(results):
        if path.suffix == ".pt":
            continue
        if match := _PRIVATE.search(path.read_text(encoding="utf-8", errors="replace")):
            yield str(path), f"names a private path ({match[0]}); take it out"


def _no_large_files(results: Results) -> Findings:
    for path in _files(results):
        if path.stat().st_size > MAXIMUM_FILE_BYTES or path.suffix == ".pt":
            yield str(path), f"{path.stat().st_size / 1e6:.1f} MB: checkpoints and large files stay out"


RULES: Mapping[str, Callable[[Results], Findings]] = {
    "whole files": _readable,
    "provenance": _provenance,
    "cells as resolved": _cells_as_resolved,
    "untouched recipe": _untouched_recipe,
    "real data": _data_are_real,
    "three seeds": _enough_seeds,
    "failures included": _failures_included,
    "every epoch": _every_epoch,
    "sound cells": _sound,
    "figures that follow": _figures_follow,
    "hardware named": _hardware_named,
    "names nobody": _names_nobody,
    "no large files": _no_large_files,
}
"""Rule, as named in docs/rules.md → the function that finds its breaches."""


def _files(results: Results) -> Iterator[Path]:
    for run in results.runs:
        yield from (path for path in sorted(run.path.rglob("*")) if path.is_file())


def _runs(results: Results) -> pd.DataFrame:
    return results.cells[results.cells["kind"] == "run"]


def _name(cell: "pd.Series[Any]") -> str:
    return f"{cell['recipe']}, {cell['method']}, seed {int(cell['seed'])}"


def _differences(a: Recipe, b: Recipe) -> Iterator[str]:
    """Yields the dotted keys in which two recipes differ, if they affect results."""
    left, right = _flat(a.model_dump(mode="json")), _flat(b.model_dump(mode="json"))
    for key in sorted((left.keys() | right.keys()).difference(NOT_DECISIVE_OF_TRAIN)):
        if section_of(key) not in ("name", *NOT_DECISIVE) and left.get(key) != right.get(key):
            yield key


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
