"""Reading result folders back: any pile of them, torn or foreign files included, nothing guessed.

What is not read is listed with its reason. Numbers that are missing are NaN, never 0.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.common.printable import printable
from sltt_bench.common.yaml_text import YAMLFault, read_yaml
from sltt_bench.results.schema import (
    BENCH_FILE,
    CELLS_FILE,
    CELLS_FOLDER,
    CHECKPOINTS_FOLDER,
    EPOCHS_FILE,
    FILES,
    FURTHER_LOGS,
    JSON_COLUMNS,
    LOGS_FOLDER,
    PROVENANCE_FILE,
    RANKS_FILE,
    RECIPE_FILE,
    TIMELINE_FILE,
)
from sltt_bench.results.tables import Skipped, Tables, torn_at
from sltt_bench.results.writer import ResultsError

if TYPE_CHECKING:
    from rich.console import Console

_MARKERS = {CELLS_FILE, EPOCHS_FILE, BENCH_FILE, PROVENANCE_FILE}
_BESIDE = [file for file in FILES if file not in (CELLS_FILE, EPOCHS_FILE, RANKS_FILE, TIMELINE_FILE)]
"""What is read with the cells, if a run has it."""
_REPORT_MARKER = "summary.csv"
_DESCRIPTIONS = {"README.md", "croissant.json"}


def _mapping(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object; provenance may have been damaged."""
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Run:
    """One run's folder, but for its rows."""

    path: Path
    provenance: Mapping[str, Any]
    """provenance.json; empty if it cannot be read."""
    overridden: frozenset[str] = frozenset()
    """The cells that are not the run's recipe as it stands in recipe.yaml."""
    damage: list[Skipped] = field(default_factory=list, compare=False)
    """Grows with what is read when it is asked for; all runs of some Results share it."""
    _cells: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    """What has been read; every section of a report asks again."""

    def cell(self, cell_id: str) -> Mapping[str, Any]:
        """The resolved cell as it was given to its process; empty if its file is missing or no JSON."""
        if cell_id not in self._cells:
            file = self.path / CELLS_FOLDER / f"{cell_id}.json"
            self._cells[cell_id] = _read_json_object(file, self.damage)
        return self._cells[cell_id]

    def measured_with(self, cell_id: str, attempt: int) -> Mapping[str, Any]:
        """What an attempt was measured with: versions and machine as its command had them, and what its
        process said (torch, flags, kernels, absent sensors). Runs from before attempts were told apart have
        one answer for all of them; empty where nothing is known.
        """
        own = self._told_by.get((cell_id, str(attempt))) or self._told_by.get((cell_id, ""), {})
        commands = self.provenance.get("commands")
        number = own.get("command")
        of_command = (
            _mapping(commands[number])
            if isinstance(commands, list) and isinstance(number, int) and 0 <= number < len(commands)
            else {}
        )
        return {**self.provenance, **of_command, **own}

    def is_stranger(self, cell_id: str, attempt: int) -> bool:
        """Whether provenance.json, which tells of the attempts at the run's cells, tells nothing of this one: its rows are
        another run's. False of runs from before attempts were told apart.
        """
        whole = bool(self.provenance.get("plan")) and any(number for _, number in self._told_by)
        return whole and (cell_id, str(attempt)) not in self._told_by

    @property
    def told(self) -> list[Mapping[str, Any]]:
        """What the processes of all attempts said."""
        return list(self._told_by.values())

    @cached_property
    def _told_by(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """(cell_id, attempt) → what its process said; the attempt is "" in runs from before attempts were told apart."""
        told = {}
        for cell_id, entry in _mapping(self.provenance.get("cells")).items():
            attempts = _mapping(_mapping(entry).get("attempts"))
            for attempt, facts in attempts.items():
                told[cell_id, str(attempt)] = _mapping(facts)
            if not attempts:
                told[cell_id, ""] = {**_mapping(_mapping(entry).get("provenance")), **_mapping(entry)}
        return told

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """recipe.yaml: the recipe without the overrides of a grid; empty if it cannot be read."""
        path = self.path / RECIPE_FILE
        try:
            recipe = read_yaml(path) if path.is_file() else {}
        except (OSError, YAMLFault) as error:
            self.damage.append(Skipped(str(path), f"cannot be read: {error}"))
            return {}
        return recipe if isinstance(recipe, dict) else {}

    @cached_property
    def study(self) -> Any:
        """What recipe.yaml says under `study`. Of most runs it says nothing, and parsing it all would take longest."""
        path = self.path / RECIPE_FILE
        try:
            mentioned = path.is_file() and b"study:" in path.read_bytes()
        except OSError:
            return None
        return self.recipe.get("study") if mentioned else None

    def recipe_of(self, cell_id: str) -> Mapping[str, Any]:
        """The resolved recipe of a cell; without its file that of the run, unless the cell departs from it."""
        recipe = self.cell(cell_id).get("recipe")
        if isinstance(recipe, dict):
            return recipe
        return {} if cell_id in self.overridden else self.recipe

    @property
    def has_timeline(self) -> bool:
        """Whether something was sampled over time."""
        return (self.path / TIMELINE_FILE).is_file()

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """timeline.csv; without rows if there is none."""
        return self.rows(TIMELINE_FILE)

    def rows(self, file: str) -> pd.DataFrame:
        """One of the run's files, of all attempts; without rows if there is none."""
        tables = Tables(self.damage)
        if (self.path / file).is_file():
            tables.read(self.path / file)
        return tables.frame(file)


@dataclass(frozen=True)
class Results:
    """Everything that was read from some folders."""

    runs: tuple[Run, ...]
    cells: pd.DataFrame
    """cells.csv of all runs, one row a cell: its last attempt. Four columns more: `run`, the index
    into `runs`, `line` of the file, `attempts`, and `attempt_devices`, on how many devices those ran, or the epochs
    that count: an attempt whose runner was killed has no row here."""
    epochs: pd.DataFrame
    """epochs.csv of the cells in `cells`, one row an epoch: the last attempt's. Columns `run`, `line` as above."""
    damage: list[Skipped] = field(default_factory=list)
    beside: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """File name → its rows of all runs, all attempts, with the column `run`."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What was not read so far, and why; a run's timeline, for one, is read when it is asked for."""
        return tuple(sorted(set(self.damage)))

    @property
    def reasons(self) -> str:
        """For the end of an error about something that is not there: " (path: reason)" of what was not read, or ''."""
        reasons = "; ".join(f"{skip.path}: {skip.reason}" for skip in self.skipped[:3])
        return f" ({reasons})" if reasons else ""

    def rows(self, file: str) -> pd.DataFrame:
        """A file of all runs that is read beside their cells; without rows if no run has it."""
        return self.beside[file] if file in self.beside else Tables([]).frame(file)


def print_unread(unread: Sequence[Skipped], console: "Console", most: int = 4) -> None:
    """Print what of some results is in no figure, a line each, up to `most` of them."""
    from rich.markup import escape

    lines = [f"{skip.path}: {skip.reason}" for skip in unread[:most]]
    if more := len(unread) - len(lines):
        lines.append(f"{more} more, listed in the files of `sltt-bench report`")
    for line in lines:
        console.print(f"[dim]not read: {escape(line)}[/dim]", highlight=False, soft_wrap=True)


def read_results(sources: Iterable[Path]) -> Results:
    """All runs in and below the folders in the order of their starts, each counted once, however often it was copied
    or named.

    Raises ResultsError if a source is no folder.
    """
    damage: list[Skipped] = []
    tables = Tables(damage)
    files: dict[Path, Sequence[str]] = {}
    for path, names in _run_folders(sources, damage):
        there = [f for f in (CELLS_FILE, EPOCHS_FILE, *_BESIDE) if f in names and (path / f).is_file()]
        if CELLS_FILE not in there and BENCH_FILE not in there:
            damage.append(Skipped(str(path), f"no {CELLS_FILE}: no cell of this run has ended yet"))
            continue
        files[path] = there
        timeline = path / TIMELINE_FILE
        if TIMELINE_FILE in names and timeline.is_file() and (line := torn_at(timeline)) is not None:
            damage.append(Skipped(f"{timeline}:{line}", "torn: the line was never finished"))
    told = [(path, _read_provenance(path, damage)) for path in files]
    folders = sorted(told, key=lambda run: str(run[1].get("started_utc") or ""))
    for number, (path, _) in enumerate(folders):
        for file in files[path]:
            tables.read(path / file, run=number)
    cells, epochs = tables.frame(CELLS_FILE), tables.frame(EPOCHS_FILE)
    departs = cells[~cells["overrides"].isin(["", "{}"])].groupby("run")["cell_id"].agg(frozenset)
    runs = [
        Run(path, provenance, departs.get(number, frozenset()), damage)
        for number, (path, provenance) in enumerate(folders)
    ]
    epochs = _without_contradictions(cells, epochs, runs, damage)
    cells, epochs = _each_execution_once(cells, epochs, runs, damage)
    cells = _with_what_they_measured(cells, epochs, runs, damage)
    beside = {
        file: frame
        for file in _BESIDE
        if any(file in there for there in files.values()) and not (frame := tables.frame(file)).empty
    }
    return Results(tuple(runs), cells, epochs, damage, beside)


# Folders ----------------------------------------------------------------------------------------


def _run_folders(sources: Iterable[Path], damage: list[Skipped]) -> Iterator[tuple[Path, Sequence[str]]]:
    """The folders of runs, each once, with the names of their files."""
    seen: set[str] = set()
    reports: set[Path] = set()
    for source in sources:
        if not source.is_dir():
            what = "is a file" if source.exists() else "does not exist"
            raise ResultsError(f"{source}: {what}; give a folder with results, for example results/")

        def unreadable(error: OSError) -> None:
            damage.append(Skipped(str(error.filename), f"cannot be read: {error.strerror}"))

        for top, folders, files in os.walk(source, onerror=unreadable, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            path = Path(top)
            if (place := os.path.realpath(top)) in seen:
                folders.clear()
                continue
            seen.add(place)
            if _MARKERS.intersection(files):
                own = {CELLS_FOLDER, LOGS_FOLDER, CHECKPOINTS_FOLDER, *FURTHER_LOGS}
                folders[:] = [folder for folder in folders if folder not in own]
                yield path, files
            elif _REPORT_MARKER in files:
                reports.add(path)  # it may have been written beside runs: those are read
                damage.append(Skipped(str(path), "an earlier report, not results"))
            elif not reports.isdisjoint(path.parents):
                continue
            elif foreign := sorted(f for f in files if not f.startswith(".") and f not in _DESCRIPTIONS):
                named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if foreign[3:] else "")
                damage.append(Skipped(str(path), f"files that belong to no run: {named}"))


def _read_json_object(path: Path, damage: list[Skipped]) -> dict[str, Any]:
    """Empty if the file is missing or no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = _printable_values(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        damage.append(Skipped(str(path), f"cannot be read as JSON: {str(error)[:200]}"))
        return {}
    if not isinstance(value, dict):
        damage.append(Skipped(str(path), "cannot be read: no JSON object"))
        return {}
    return value


def _printable_values(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable_values(below) for key, below in value.items()}
    return [_printable_values(below) for below in value] if isinstance(value, list) else value


_PROVENANCE: dict[str, type] = {
    "run": str,
    "started_utc": str,
    "sltt_bench": str,
    "git_revision": str,
    "command": list,
    "commands": list,
    "packages": dict,
    "environment": dict,
    "gpus": list,
    "cells": dict,
    "plan": list,
    "failed": dict,
}
"""What a report reads of provenance.json, and of each command in it, and what it must be there."""
_ITEMS = {"commands": dict, "gpus": dict, "plan": str}
"""What each item of these lists must be."""


def _read_provenance(folder: Path, damage: list[Skipped]) -> dict[str, Any]:
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        damage.append(Skipped(str(path), "missing: versions are unknown"))
    provenance = _read_json_object(path, damage)
    faults = _take_out_other_types(provenance, _PROVENANCE)
    for number, command in enumerate(provenance.get("commands") or ()):
        faults += [f"commands.{number}.{fault}" for fault in _take_out_other_types(command, _PROVENANCE)]
    of_attempts = {**_PROVENANCE, "command": int}  # which of the commands
    for cell_id, entry in (provenance.get("cells") or {}).items():
        for attempt, facts in _mapping(_mapping(entry).get("attempts")).items():
            where = f"cells.{cell_id}.attempts.{attempt}"
            own = _take_out_other_types(_mapping(facts), of_attempts)
            faults += [f"{where}.{fault}" for fault in own]
    damage += [Skipped(str(path), fault) for fault in faults]
    return provenance


def _take_out_other_types(facts: dict[str, Any], types: Mapping[str, type]) -> list[str]:
    """Removes what is not of its type; what that was."""
    faults = []
    for key, kind in types.items():
        value = facts.get(key)
        items = value if isinstance(value, list) and key in _ITEMS else []
        sound = isinstance(value, kind) and all(isinstance(item, _ITEMS[key]) for item in items)
        if value is not None and not sound:
            faults.append(f"{key} is no {kind.__name__}: not read")
            del facts[key]
    return faults


# Attempts and copies ----------------------------------------------------------------------------


_CELL = ["run", "cell_id"]
"""What tells the cells of all runs apart."""
_ADDED_TO_EPOCHS = ("kind", "synthetic", "smoke", "overrides")
"""Empty in the epochs of files of earlier versions."""
_SAME = (
    "recipe", "recipe_hash", "method", "backend", "k", "timesteps", "batch_size", "seed", *_ADDED_TO_EPOCHS,
)  # fmt: skip
"""What all rows of a cell say alike."""


def _cell_of_each(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[_CELL])


def _without_contradictions(
    cells: pd.DataFrame, epochs: pd.DataFrame, runs: Sequence[Run], damage: list[Skipped]
) -> pd.DataFrame:
    """The epochs that say of their cell what its row in cells.csv says; an epoch without such a row stays."""
    about = cells.drop_duplicates(_CELL, keep="last").set_index(_CELL)[list(_SAME)]
    key = _cell_of_each(epochs)
    wanted = about.reindex(key)
    known = key.isin(about.index)
    wrong = pd.Series(False, index=epochs.index)
    for column in _SAME:
        values, expected = epochs[column].to_numpy(), wanted[column].to_numpy()
        differs = known & (values != expected) & ~(pd.isna(values) & pd.isna(expected))
        if column in _ADDED_TO_EPOCHS:
            differs &= ~(pd.isna(values) | (values == ""))
        if column in JSON_COLUMNS:  # programs that save a table spell its letters in their own way
            for position in differs.nonzero()[0].tolist():
                differs[position] = _parsed(values[position]) != _parsed(expected[position])
        for position in differs.nonzero()[0].tolist():
            row = epochs.iloc[position]
            path = runs[int(row["run"])].path / EPOCHS_FILE
            fault = (
                f"{column} is {row[column]!r}, but its cell's row in {CELLS_FILE} says {expected[position]!r}"
            )
            damage.append(Skipped(f"{path}:{row['line']}", fault))
        wrong |= differs
    return epochs[~wrong]


def _parsed(text: Any) -> Any:
    """The value of a JSON column; None if it is empty."""
    return json.loads(text) if isinstance(text, str) and text else None


def _with_what_they_measured(
    cells: pd.DataFrame, epochs: pd.DataFrame, runs: Sequence[Run], damage: list[Skipped]
) -> pd.DataFrame:
    """The cells but for finished runs of which no epoch is there: they have no figure to show."""
    there = _cell_of_each(cells).isin(_cell_of_each(epochs))
    without = (cells["kind"] == "run") & (cells["status"] == "ok") & ~there
    for _, cell in cells[without].iterrows():
        path = runs[int(cell["run"])].path / CELLS_FILE
        damage.append(
            Skipped(f"{path}:{cell['line']}", f"the cell is ok, but {EPOCHS_FILE} has no row of it")
        )
    return cells[~without].reset_index(drop=True)


def _each_execution_once(
    cells: pd.DataFrame, epochs: pd.DataFrame, runs: Sequence[Run], damage: list[Skipped]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The last attempt of each cell and epoch of a run; of copies of one run, the fullest alone."""
    cells = cells.sort_values([*_CELL, "attempt"], kind="stable")
    cells = cells.drop_duplicates([*_CELL, "attempt"], keep="last")
    epochs = epochs.sort_values([*_CELL, "epoch", "attempt"], kind="stable")
    epochs = epochs.drop_duplicates([*_CELL, "epoch"], keep="last")

    of_attempts = cells.groupby(_CELL, sort=False).agg(
        attempts=("attempt", "size"),
        first_started=("started_utc", "first"),
        first_wall_s=("wall_s", "first"),
    )
    device = [*_CELL, "device_name"]
    rows = pd.concat([cells[device], epochs[device]])
    named = rows[rows["device_name"] != ""].groupby(_CELL)["device_name"].nunique()
    of_attempts["attempt_devices"] = named.reindex(of_attempts.index, fill_value=0)
    cells = cells.drop_duplicates(_CELL, keep="last").join(of_attempts, on=_CELL)

    cells = _without_copies(cells, epochs, runs, damage)

    belongs = _cell_of_each(epochs).isin(_cell_of_each(cells))
    known_copies = {skip.path for skip in damage if skip.reason.startswith(_COPY)}
    for orphaned, orphans in epochs[~belongs].groupby("run"):
        path = str(runs[int(str(orphaned))].path)
        if path not in known_copies:
            cells_without = counted(orphans["cell_id"].nunique(), "cell")
            reason = f"{cells_without} with epochs but no ending: still running, or cut off"
            damage.append(Skipped(str(Path(path) / EPOCHS_FILE), reason))
    return cells.reset_index(drop=True), epochs[belongs].reset_index(drop=True)


_COPY = "a copy of "


def _without_copies(
    cells: pd.DataFrame, epochs: pd.DataFrame, runs: Sequence[Run], damage: list[Skipped]
) -> pd.DataFrame:
    """One execution has one cell, one start and one duration: rows that share them are the same."""
    count = epochs.groupby(_CELL).size().rename("epoch_rows")
    cells = cells.join(count, on=_CELL)
    cells["path"] = [str(runs[int(run)].path) for run in cells["run"]]
    cells = cells.sort_values(
        ["attempts", "epoch_rows", "path"], ascending=[False, False, True], na_position="last", kind="stable"
    )
    # A cell that was skipped never started; what tells copies of it apart is its run.
    never_started = cells["first_started"] == ""
    cells.loc[never_started, "first_started"] = [
        _run_identity(runs[int(run)]) for run in cells.loc[never_started, "run"]
    ]
    identity = ["cell_id", "device_name", "first_started", "first_wall_s"]
    cells = _without_altered_copies(cells, epochs, identity, damage)
    copied = cells.duplicated(identity, keep="first")
    kept = cells[~copied]
    if copied.any():
        original = kept.set_index(identity)["path"]
        for path, copies in cells[copied].groupby("path"):
            first = original.loc[tuple(copies.iloc[0][identity])]
            damage.append(
                Skipped(str(path), f"{_COPY}{first} ({counted(len(copies), 'cell')}, counted once)")
            )
    kept = kept.drop(columns=["epoch_rows", "path", "first_started", "first_wall_s"])
    return kept.sort_values(_CELL, kind="stable")


def _without_altered_copies(
    cells: pd.DataFrame, epochs: pd.DataFrame, identity: list[str], damage: list[Skipped]
) -> pd.DataFrame:
    """The cells but for copies of one execution whose figures differ: nobody knows which were measured."""
    copies = cells[cells.duplicated(identity, keep=False)]
    if copies.empty:
        return cells
    copies = copies.assign(execution=copies.groupby(identity, dropna=False).ngroup())
    of_copies = epochs.merge(copies[[*_CELL, "execution"]], on=_CELL)
    altered = _differing(copies, ["execution", "attempt"], CELLS_FILE)
    altered |= _differing(of_copies, ["execution", "epoch", "attempt"], EPOCHS_FILE)
    refused = copies[copies["execution"].isin(altered)]
    for path, own in refused.groupby("path"):
        others = refused[refused["execution"].isin(own["execution"]) & (refused["path"] != path)]
        other = others["path"].iloc[0]
        text = f"{_COPY}{other} with other figures ({counted(len(own), 'cell')}): none of them is read"
        damage.append(Skipped(str(path), text))
    return cells.drop(index=refused.index)


def _differing(rows: pd.DataFrame, key: list[str], file: str) -> set[int]:
    """The executions of which two rows of one key have different numbers; programs that save a table round them."""
    numbers = [column.name for column in FILES[file] if column.type in ("int", "float")]
    by_key = (
        rows[[*dict.fromkeys([*key, *numbers])]]
        .astype(float)
        .groupby(key)[[name for name in numbers if name not in key]]
    )
    most, least = by_key.max(), by_key.min()
    differs = (most - least > _ROUNDING * most.abs()).any(axis=1)
    return {int(execution) for execution in differs[differs].index.get_level_values("execution")}


_ROUNDING = 1e-6


def _run_identity(run: Run) -> str:
    """Equal for copies of one run, whatever their folders are called."""
    if "run" not in run.provenance:
        return str(run.path)
    return f"{run.provenance['run']} {run.provenance.get('started_utc')}"
