"""Reading result folders back: any pile of them, torn or foreign files included, nothing guessed.

What is not read is listed with its reason. Numbers that are missing are NaN, never 0.
"""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from sltt_bench.results.schema import (
    BENCH_FILE,
    CELL_KEY,
    CELLS_FILE,
    CELLS_FOLDER,
    CHECKPOINTS_FOLDER,
    DRAWS_FILE,
    EPOCHS_FILE,
    ESTIMATES_FILE,
    FILES,
    GRADIENTS_FILE,
    LOGS_FOLDER,
    OPERATIONS_FILE,
    PROVENANCE_FILE,
    RECIPE_FILE,
    SCHEMA_VERSION,
    TIMELINE_FILE,
    Column,
    Kind,
    Status,
)
from sltt_bench.results.writer import ResultsError
from sltt_bench.yaml_text import YAMLFault, read_yaml

Row = dict[str, str]

MIGRATIONS: dict[int, Callable[[str, Row], Row]] = {}
"""Old schema version → function (file name, row as text) → the row as the next version has it."""

_MARKERS = {CELLS_FILE, EPOCHS_FILE, BENCH_FILE, PROVENANCE_FILE}
_BESIDE = (GRADIENTS_FILE, DRAWS_FILE, OPERATIONS_FILE, ESTIMATES_FILE, BENCH_FILE)
"""What is read with the cells, if a run has it."""
_REPORT_MARKER = "summary.csv"
_DESCRIPTION = "README.md"


@dataclass(frozen=True, order=True)
class Skipped:
    """Something that was not read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One run's folder, but for its rows."""

    path: Path
    provenance: Mapping[str, Any]
    """provenance.json; empty if it cannot be read."""

    def cell(self, cell_id: str) -> Mapping[str, Any]:
        """The resolved cell as it was given to its process; empty if its file is missing or no JSON."""
        return _read_json_object(self.path / CELLS_FOLDER / f"{cell_id}.json") or {}

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """recipe.yaml: the recipe without the overrides of a grid; empty if it cannot be read."""
        try:
            recipe = read_yaml(self.path / RECIPE_FILE)
        except (OSError, YAMLFault):
            return {}
        return recipe if isinstance(recipe, dict) else {}

    def recipe_of(self, cell_id: str) -> Mapping[str, Any]:
        """The resolved recipe of a cell; without its file, that of the run."""
        recipe = self.cell(cell_id).get("recipe")
        return recipe if isinstance(recipe, dict) else self.recipe

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
        tables = _Tables([])
        if (self.path / file).is_file():
            tables.read(self.path / file, run=0)
        return tables.frame(file)


@dataclass(frozen=True)
class Results:
    """Everything that was read from some folders."""

    runs: tuple[Run, ...]
    cells: pd.DataFrame
    """cells.csv of all runs, one row a cell: its last attempt. Two columns more: `run`, the index
    into `runs`, and `attempts`."""
    epochs: pd.DataFrame
    """epochs.csv of the cells in `cells`, one row an epoch: the last attempt's. Column `run` as above."""
    skipped: tuple[Skipped, ...] = field(default=())
    beside: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """File name → its rows of all runs, all attempts, with the column `run`."""

    def rows(self, file: str) -> pd.DataFrame:
        """A file of all runs that is read beside their cells; without rows if no run has it."""
        return self.beside[file] if file in self.beside else _Tables([]).frame(file)


def read_results(sources: Iterable[Path]) -> Results:
    """All runs in and below the folders, each counted once, however often it was copied or named.

    Raises ResultsError if a source is no folder.
    """
    skipped: list[Skipped] = []
    tables = _Tables(skipped)
    runs: list[Run] = []
    for path in _run_folders(sources, skipped):
        there = [file for file in (CELLS_FILE, EPOCHS_FILE, *_BESIDE) if (path / file).is_file()]
        if CELLS_FILE not in there and BENCH_FILE not in there:
            skipped.append(Skipped(str(path), f"no {CELLS_FILE}: no cell of this run has ended yet"))
            continue
        provenance = _read_json_object(path / PROVENANCE_FILE)
        if provenance is None:
            skipped.append(Skipped(str(path / PROVENANCE_FILE), "missing or no JSON: versions are unknown"))
        for file in there:
            tables.read(path / file, run=len(runs))
        runs.append(Run(path, provenance or {}))
    cells, epochs = tables.frame(CELLS_FILE), tables.frame(EPOCHS_FILE)
    cells, epochs = _each_execution_once(cells, epochs, runs, skipped)
    beside = {file: frame for file in _BESIDE if not (frame := tables.frame(file)).empty}
    return Results(tuple(runs), cells, epochs, tuple(sorted(set(skipped))), beside)


# Folders ----------------------------------------------------------------------------------------


def _run_folders(sources: Iterable[Path], skipped: list[Skipped]) -> Iterator[Path]:
    seen: set[Path] = set()
    for source in sources:
        if not source.is_dir():
            what = "is a file" if source.exists() else "does not exist"
            raise ResultsError(f"{source}: {what}; give a folder with results, for example results/")
        for top, folders, files in os.walk(source):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            path = Path(top)
            if path.resolve() in seen:
                folders.clear()
                continue
            seen.add(path.resolve())
            if _MARKERS.intersection(files):
                own = {CELLS_FOLDER, LOGS_FOLDER, CHECKPOINTS_FOLDER}
                folders[:] = [folder for folder in folders if folder not in own]
                yield path
            elif _REPORT_MARKER in files:
                folders.clear()
                skipped.append(Skipped(str(path), "an earlier report, not results"))
            elif foreign := sorted(f for f in files if not f.startswith(".") and f != _DESCRIPTION):
                named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if foreign[3:] else "")
                skipped.append(Skipped(str(path), f"files that belong to no run: {named}"))


def _read_json_object(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return said if isinstance(said, dict) else None


# Files ------------------------------------------------------------------------------------------


class _Tables:
    """Rows of many CSV files, gathered as text and given their types all at once (that is fast)."""

    def __init__(self, skipped: list[Skipped]) -> None:
        self._skipped = skipped
        self._rows: dict[tuple[str, tuple[str, ...]], list[list[str]]] = defaultdict(list)
        self._places: dict[tuple[str, tuple[str, ...]], list[tuple[int, Path, int]]] = defaultdict(list)

    def read(self, path: Path, run: int) -> None:
        """Add a file's whole rows; a torn last line and rows with a wrong number of fields are listed."""
        lines = self._whole_lines(path)
        if not lines:
            return
        header, *rows = lines
        missing = _NEEDED[path.name] - set(header)
        if missing:
            wrong = f"not a {path.name} of sltt-bench: without {_listed(sorted(missing))}"
            self._skipped.append(Skipped(str(path), wrong))
            return
        if "schema_version" in header:
            header, rows = self._migrated(path, header, rows)
        key = (path.name, tuple(header))
        for number, row in enumerate(rows, start=2):
            if len(row) == len(header):
                self._rows[key].append(row)
                self._places[key].append((run, path, number))
            else:
                self._refuse(path, number, f"{len(row)} fields instead of {len(header)}")

    def frame(self, file: str) -> pd.DataFrame:
        """Every row of the files with this name, typed; rows with an impossible value are listed."""
        frames = [self._typed(key) for key in self._rows if key[0] == file]
        columns = [*(column.name for column in FILES[file]), "run"]
        if not frames:
            return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
        return pd.concat(frames, ignore_index=True)[columns]

    def _whole_lines(self, path: Path) -> list[list[str]]:
        try:
            text = path.read_bytes().decode("utf-8-sig")
            whole = text[: text.rfind("\n") + 1]
            if len(whole) < len(text):
                self._refuse(path, whole.count("\n") + 1, "torn: the line was never finished")
            lines = list(csv.reader(whole.splitlines(), strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            self._skipped.append(Skipped(str(path), f"cannot be read as CSV: {error}"))
            return []
        if not lines and not text:
            self._skipped.append(Skipped(str(path), "empty file"))
        return lines

    def _migrated(
        self, path: Path, header: list[str], rows: list[list[str]]
    ) -> tuple[list[str], list[list[str]]]:
        """The rows as this version has them; rows of a version that nothing migrates are listed."""
        at = header.index("schema_version")
        versions = {row[at] for row in rows if len(row) == len(header)}
        if versions <= {str(SCHEMA_VERSION)}:
            return header, rows
        columns = [column.name for column in FILES[path.name]]
        kept: list[list[str]] = []
        refused: dict[str, int] = defaultdict(int)
        for row in rows:
            if len(row) != len(header):
                kept.append(row)
                continue
            said: Row | None = dict(zip(header, row, strict=True))
            try:
                said = _migrate(path.name, said or {}, int(row[at]))
            except ValueError:
                said = None
            if said is None:
                refused[row[at]] += 1
            else:
                kept.append([said.get(column, "") for column in columns])
        for version, count in sorted(refused.items()):
            self._skipped.append(Skipped(str(path), f"{count} rows of {_unreadable_version(version)}"))
        return columns, kept

    def _typed(self, key: tuple[str, tuple[str, ...]]) -> pd.DataFrame:
        text = pd.DataFrame(self._rows[key], columns=list(key[1]), dtype=object)
        typed: dict[str, Any] = {}
        faulty: dict[int, str] = {}
        for column in FILES[key[0]]:
            if column.name not in text:
                typed[column.name] = np.full(len(text), "" if column.type == "str" else np.nan, dtype=object)
                continue
            values, wrong = _typed_column(text[column.name], column, needed=column.name in _NEEDED[key[0]])
            typed[column.name] = values
            for position in np.flatnonzero(wrong).tolist():
                said = text[column.name].iloc[position]
                faulty.setdefault(position, f"{column.name} is {said!r}, not {_expected(column)}")
        frame = pd.DataFrame(typed)
        frame["run"] = [run for run, _, _ in self._places[key]]
        for position, fault in faulty.items():
            _, path, number = self._places[key][position]
            self._refuse(path, number, fault)
        return frame.drop(index=list(faulty))

    def _refuse(self, path: Path, number: int, fault: str) -> None:
        self._skipped.append(Skipped(f"{path}:{number}", fault))


_KEY = {column.name for column in CELL_KEY} - {"k"}
_NEEDED = {
    CELLS_FILE: _KEY | {"kind", "synthetic", "smoke", "status"},
    EPOCHS_FILE: _KEY | {"epoch", "cold"},
    TIMELINE_FILE: {"cell_id", "attempt"},
    GRADIENTS_FILE: _KEY | {"epoch", "tau", "surrogate", "reset", "level", "depth"},
    DRAWS_FILE: _KEY | {"epoch", "tau", "surrogate", "reset", "drawn"},
    OPERATIONS_FILE: _KEY | {"counted_method", "samples"},
    ESTIMATES_FILE: _KEY | {"run_cell_id", "peak_tensor_bytes"},
    BENCH_FILE: {
        "schema_version",
        "row",
        "quantity",
        "subject",
        "baseline",
        "problem",
        "device_name",
        "subject_value",
        "baseline_value",
        "ratio",
        "finished_utc",
    },
}
"""File → columns that it must have, never empty; any other may be missing."""
_WORDS = {"status": get_args(Status), "kind": get_args(Kind)}
_SHARES = ("top1", "top5", "gpu_util_mean", "firing_rate")
_NOT_NEGATIVE = ("_s", "_bytes", "_j", "samples")


def _typed_column(
    text: "pd.Series[Any]", column: Column, *, needed: bool
) -> tuple[Any, "np.ndarray[Any, Any]"]:
    """The column's values (missing numbers are NaN) and where the text cannot be such a value."""
    empty = (text == "").to_numpy()
    refused_empty = empty if needed else np.zeros(len(text), dtype=bool)
    if column.type == "str":
        words = _WORDS.get(column.name)
        return text, refused_empty | (~text.isin(words).to_numpy() if words else False)
    if column.type == "bool":
        lower = text.str.lower()
        wrong = refused_empty | (~lower.isin(["true", "false"]).to_numpy() & ~empty)
        true = (lower == "true").to_numpy()
        if empty.any():  # neither: None
            true = true.astype(object)
            true[empty] = None
        return true, wrong
    values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=float)
    said_nan = (text.str.lower() == "nan").to_numpy()
    wrong = refused_empty | (np.isnan(values) & ~empty & ~said_nan)
    if column.type == "int":
        wrong |= np.isinf(values) | said_nan | ((values != np.floor(values)) & ~np.isnan(values))
    if column.name.endswith(_NOT_NEGATIVE):
        wrong |= (values < 0) | np.isinf(values)
    if column.name.endswith(_SHARES):
        wrong |= (values < 0) | (values > 1)
    return values, wrong


def _expected(column: Column) -> str:
    if column.name in _WORDS:
        return "one of " + ", ".join(_WORDS[column.name])
    if column.name.endswith(_SHARES):
        return "a share from 0 to 1"
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}[column.type]


def _migrate(file: str, row: Row, version: int) -> Row | None:
    while version != SCHEMA_VERSION:
        if version not in MIGRATIONS:
            return None
        row, version = MIGRATIONS[version](file, row), version + 1
    return row | {"schema_version": str(SCHEMA_VERSION)}


def _unreadable_version(version: str) -> str:
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        return f"schema version {version}: newer than this sltt-bench reads ({SCHEMA_VERSION}); update it"
    return f"schema version {version!r}: this sltt-bench reads version {SCHEMA_VERSION} only"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more columns" if names[4:] else ""
    return "column " + ", ".join(names[:4]) + more


# Attempts and copies ----------------------------------------------------------------------------


def _each_execution_once(
    cells: pd.DataFrame, epochs: pd.DataFrame, runs: Sequence[Run], skipped: list[Skipped]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The last attempt of each cell and epoch of a run; of copies of one run, the fullest alone."""
    cells = cells.sort_values(["run", "cell_id", "attempt"], kind="stable")
    cells = cells.drop_duplicates(["run", "cell_id", "attempt"], keep="last")
    firsts = cells.groupby(["run", "cell_id"], sort=False)[["started_utc", "wall_s"]].first()
    attempts = cells.groupby(["run", "cell_id"], sort=False)["attempt"].size()
    cells = cells.drop_duplicates(["run", "cell_id"], keep="last").set_index(["run", "cell_id"])
    cells["attempts"] = attempts
    cells["first_started"], cells["first_wall_s"] = firsts["started_utc"], firsts["wall_s"]
    cells = cells.reset_index()

    epochs = epochs.sort_values(["run", "cell_id", "epoch", "attempt"], kind="stable")
    epochs = epochs.drop_duplicates(["run", "cell_id", "epoch"], keep="last")
    cells = _without_copies(cells, epochs, runs, skipped)

    ended = pd.MultiIndex.from_frame(cells[["run", "cell_id"]])
    belongs = pd.MultiIndex.from_frame(epochs[["run", "cell_id"]]).isin(ended)
    known_copies = {skip.path for skip in skipped if skip.reason.startswith(_COPY)}
    for orphaned, orphans in epochs[~belongs].groupby("run"):
        path = str(runs[int(str(orphaned))].path)
        if path not in known_copies:
            count = orphans["cell_id"].nunique()
            reason = f"{count} cells have epochs but no ending: still running, or cut off"
            skipped.append(Skipped(str(Path(path) / EPOCHS_FILE), reason))
    return cells.reset_index(drop=True), epochs[belongs].reset_index(drop=True)


_COPY = "a copy of "


def _without_copies(
    cells: pd.DataFrame, epochs: pd.DataFrame, runs: Sequence[Run], skipped: list[Skipped]
) -> pd.DataFrame:
    """One execution has one cell, one start and one duration: rows that share them are the same."""
    if cells.empty:
        return cells.drop(columns=["first_started", "first_wall_s"])
    count = epochs.groupby(["run", "cell_id"]).size().rename("epoch_rows")
    cells = cells.join(count, on=["run", "cell_id"])
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
    copied = cells.duplicated(identity, keep="first")
    kept = cells[~copied]
    original = kept.drop_duplicates(identity).set_index(identity)["path"]
    for path, copies in cells[copied].groupby("path"):
        first = original.loc[tuple(copies.iloc[0][identity])]
        skipped.append(Skipped(str(path), f"{_COPY}{first} ({len(copies)} cells, counted once)"))
    kept = kept.drop(columns=["epoch_rows", "path", "first_started", "first_wall_s"])
    return kept.sort_values(["run", "cell_id"], kind="stable")


def _run_identity(run: Run) -> str:
    """Equal for copies of one run, whatever their folders are called."""
    if "run" not in run.provenance:
        return str(run.path)
    return f"{run.provenance['run']} {run.provenance.get('started_utc')}"
