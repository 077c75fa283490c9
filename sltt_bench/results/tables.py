"""Reads the CSV files of results as typed rows, and reports damaged rows with file and line.

This is the only reader of these files, so reports, `--resume` and others see the same rows. A row counts only
if each of its values is possible for its column, and no other row says otherwise; nothing is repaired or guessed. Missing numbers are NaN,
never 0.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from sltt_bench.common.format import counted
from sltt_bench.common.printable import printable
from sltt_bench.results.schema import (
    EPOCHS_FILE,
    FILES,
    JSON_COLUMNS,
    ROW_KEYS,
    SCHEMA_VERSION,
    Column,
    Kind,
    Status,
)

Row = dict[str, str]
Line = tuple[int, list[str]]
"""The number of a line, and its fields."""
Mask = npt.NDArray[np.bool_]

_WORDS = {"status": get_args(Status), "kind": get_args(Kind)}
_SHARES = (
    "top1", "top5", "gpu_util", "gpu_util_mean", "cpu_util_mean", "cpu_others_mean", "firing_rate", "sparsity", "silent_share",
)  # fmt: skip
_NOT_NEGATIVE = ("_s", "_bytes", "_j", "samples")
_FROM_ONE = {"attempt", "timesteps", "batch_size", "k"}
_SIGNED = {"exit_code", "temperature_c"}
_BOOLEANS = {"true": True, "false": False}
_WHOLE = re.compile(r"-?\d{1,30}(?:\.0)?")
"""How programs write whole numbers; 1.2E+09 comes from a spreadsheet and has lost digits."""
_LARGEST = 1e100
"""No measured figure is larger, and sums of squares would overflow."""
_LARGEST_MEASURED = 1e19
"""No measured seconds, bytes, joules or samples are larger."""
_SMALLEST_MEASURED = 1e-12
"""None are smaller, but for 0: no axis of a plot reaches from them to the others."""


class Skipped(NamedTuple):
    """Something that was not read, and why."""

    path: str
    """A folder, a file, or `file:line`."""
    reason: str


@dataclass(frozen=True)
class _Gathered:
    """The text of all files with the same name and header."""

    columns: list[list[str]]
    """In the header's order, over all files. Lists of columns, since there may be a hundred thousand rows."""
    files: list[tuple[int, Path, list[int]]] = field(default_factory=list)
    """Run, path and line numbers of the rows of each file."""


class Tables:
    """Rows of many CSV files, collected as text and converted to their types all at once, which is fast."""

    def __init__(self, skipped: list[Skipped]) -> None:
        self._skipped = skipped
        self._gathered: dict[tuple[str, tuple[str, ...]], _Gathered] = {}

    def read(self, path: Path, run: int = 0) -> None:
        """Add a file's rows; `run` is the caller's number for the file."""
        self.add(path, whole_lines(path, self._skipped), run)

    def add(self, path: Path, lines: Sequence[Line], run: int = 0) -> None:
        """Add those of a file's rows that stand in `lines`, the header first."""
        if not lines:
            return
        (_, header), *rows = lines
        key = (path.name, tuple(header))
        if key not in self._gathered and (fault := header_fault(path.name, header)) is not None:
            self._skipped.append(Skipped(str(path), fault))
            return
        known = {column.name for column in FILES[path.name]}
        if unknown := [name for name in header if name not in known]:
            _refuse(self._skipped, path, 1, f"{_listed(unknown)} is unknown here and not read")
        whole = [(number, row) for number, row in rows if len(row) == len(header)]
        for number, row in rows:
            if len(row) != len(header):
                _refuse(self._skipped, path, number, f"{len(row)} fields instead of {len(header)}")
        if whole:
            gathered = self._gathered.setdefault(key, _Gathered([[] for _ in header]))
            numbers, fields = zip(*whole, strict=True)
            for column, texts in zip(gathered.columns, zip(*fields, strict=True), strict=True):
                column.extend(texts)
            gathered.files.append((run, path, list(numbers)))

    def frame(self, file: str) -> pd.DataFrame:
        """Returns every sound row of the files with this name, typed, with the columns `run` and `line`."""
        frames = [self._typed(key) for key in self._gathered if key[0] == file]
        columns = [*(column.name for column in FILES[file]), "run", "line"]
        if not frames:  # of the types of one with rows, since pandas joins no others to it
            numbers = {column.name: float for column in FILES[file] if column.type in ("int", "float")}
            return pd.DataFrame(columns=columns, dtype=object).astype({**numbers, "run": int, "line": int})
        return self._each_once(file, pd.concat(frames, ignore_index=True)[columns])

    def _each_once(self, file: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows but for repetitions; of rows of one key that differ none, since nobody knows which was measured."""
        if file not in ROW_KEYS:
            return frame
        key = ["run", *ROW_KEYS[file]]
        several = frame[frame.duplicated(key, keep=False)]
        if several.empty:
            return frame
        kept = several.drop_duplicates([name for name in frame.columns if name != "line"])
        refused = kept.duplicated(key, keep=False)
        paths = {
            run: path for of, rows in self._gathered.items() if of[0] == file for run, path, _ in rows.files
        }
        for _, same in kept[refused].groupby(key, dropna=False, sort=False):
            for line in same["line"]:
                others = ", ".join(str(other) for other in same["line"] if other != line)
                fault = f"line {others} says otherwise of the same {ROW_KEYS[file][-1]}: none of them is read"
                _refuse(self._skipped, paths[same["run"].iloc[0]], int(line), fault)
        return frame.drop(index=several.index.difference(kept.index[~refused]))

    def _typed(self, key: tuple[str, tuple[str, ...]]) -> pd.DataFrame:
        file, header = key
        gathered = self._gathered[key]
        texts = dict(zip(header, gathered.columns, strict=True))
        count = len(gathered.columns[0])
        typed: dict[str, Any] = {}
        faulty: dict[int, str] = {}
        index = pd.RangeIndex(count)
        for column in FILES[file]:
            if column.name not in texts:
                typed[column.name] = np.full(count, "" if column.type == "str" else np.nan, dtype=object)
                continue
            text = texts[column.name]
            values, wrong = _typed_column(text, column, file)
            typed[column.name] = (
                pd.Series(values, index, dtype=object) if column.type == "str" else np.asarray(values)
            )
            for position in np.flatnonzero(wrong).tolist():
                fault = f"{column.name} is {_quoted(text[position])}, not {_expected(column)}"
                faulty.setdefault(position, fault)
        counts = [len(numbers) for _, _, numbers in gathered.files]
        typed["run"] = np.repeat([run for run, _, _ in gathered.files], counts)
        typed["line"] = [number for _, _, numbers in gathered.files for number in numbers]
        ends = np.cumsum(counts)
        for position, fault in faulty.items():
            _, path, _ = gathered.files[int(np.searchsorted(ends, position, side="right"))]
            _refuse(self._skipped, path, typed["line"][position], fault)
        return pd.DataFrame(typed, index).drop(index=list(faulty))


def read_rows(path: Path, skipped: list[Skipped], *, of_cell: str | None = None) -> list[Row]:
    """Returns the sound rows of one file as text, all or those of one cell, in order; none if there is no file.

    Whole numbers are as this tool writes them, without the ".0" of programs that have only floats.
    """
    if not path.exists():
        return []
    lines, tables = whole_lines(path, skipped, mentioning=of_cell), Tables(skipped)
    tables.add(path, lines)
    frame = tables.frame(path.name)
    sound = set(frame["line"] if of_cell is None else frame["line"][frame["cell_id"] == of_cell])
    rows = [dict(zip(lines[0][1], row, strict=True)) for number, row in lines[1:] if number in sound]
    whole = [column.name for column in FILES[path.name] if column.type == "int"]
    return [row | {name: row[name].removesuffix(".0") for name in whole if name in row} for row in rows]


def torn_at(path: Path) -> int | None:
    """Returns the number of a file's last line if it is unfinished; else None, without reading the file."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return None
        file.seek(-1, 2)
        if file.read(1) == b"\n":
            return None
        file.seek(0)
        return file.read().count(b"\n") + 1


# Text -------------------------------------------------------------------------------------------


def whole_lines(path: Path, skipped: list[Skipped], *, mentioning: str | None = None) -> list[Line]:
    """Returns (line number, fields) of each finished line, the header first, without empty lines; of the others only
    those with the text `mentioning`, if that is given: a cell has few among a hundred thousand.

    The writer puts no line break into a field, so a damaged line damages no other.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        skipped.append(Skipped(str(path), f"cannot be read: {error.strerror or error}"))
        return []
    if not content:
        skipped.append(Skipped(str(path), "empty file"))
        return []
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        skipped.append(Skipped(str(path), "cannot be read as CSV: UTF-16 text; save it as UTF-8"))
        return []
    *raw, torn = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if torn:
        _refuse(skipped, path, len(raw) + 1, "torn: the line was never finished")
    lines: list[Line] = []
    wanted = b"" if mentioning is None else mentioning.encode()
    for number, line in enumerate(raw, start=1):
        if number > 1 and wanted not in line:
            continue
        try:
            fields = _fields(line.rstrip(b"\r").decode("utf-8"))
        except (UnicodeDecodeError, csv.Error) as error:
            _refuse(skipped, path, number, f"cannot be read as CSV: {error}")
            if number == 1:
                return []
            continue
        if fields:
            lines.append((number, fields))
    return lines


def _fields(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",") if line else []
    if "\0" in line:
        raise csv.Error("the line contains NUL")
    return next(csv.reader([line], strict=True))


def header_fault(file: str, header: list[str]) -> str | None:
    """Returns why these are not the columns of such a file, or None."""
    needed = {column.name for column in FILES[file] if column.needed}
    missing = sorted(needed - set(header))
    if missing:
        other = next((mark for mark in ";\t|" if mark in header[0]), None)
        if other is not None:
            return f"fields are separated by {other!r}; a {file} of sltt-bench has commas"
        if not needed - {name.strip().lower() for name in header}:
            return "column names are written otherwise than sltt-bench writes them: lower case, no spaces"
        return f"not a {file} of sltt-bench: without {_listed(missing)}"
    if "" in header:
        return "a column without a name: commas too many at the ends of its lines"
    twice = sorted({name for name in header if header.count(name) > 1})
    return f"{_listed(twice)} twice" if twice else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {counted(len(names) - 4, 'more column')}" if names[4:] else ""
    return "column " + ", ".join(names[:4]) + more


def _quoted(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:59] + "…")


def _refuse(skipped: list[Skipped], path: Path, number: int, fault: str) -> None:
    skipped.append(Skipped(f"{path}:{number}", fault))


# Values -----------------------------------------------------------------------------------------


def _typed_column(text: Sequence[str], column: Column, file: str) -> tuple[Any, Mask]:
    """Returns the column's values (missing numbers are NaN) and a mask of the texts that are no valid value.

    Most columns repeat the same text in thousands of rows, so each distinct text is parsed once.
    """
    codes, distinct = pd.factorize(np.array(text, dtype=object))
    values, wrong = _typed_values(distinct.tolist(), column, file)
    return np.asarray(values, dtype=object if column.type == "str" else None)[codes], wrong[codes]


def _typed_values(text: Sequence[str], column: Column, file: str) -> tuple[Any, Mask]:
    empty = np.array([value == "" for value in text])
    wrong = empty & column.needed
    if column.name in JSON_COLUMNS:  # escaping a control character would change the JSON
        return list(text), wrong | _wrong_words(text, column)
    if column.type == "str":
        return [printable(value) for value in text], wrong | _wrong_words(text, column)
    if column.type == "bool":
        booleans = [_BOOLEANS.get(value.lower()) for value in text]
        wrong |= np.array([value is None for value in booleans]) & ~empty
        return (booleans if empty.any() else [bool(value) for value in booleans]), wrong
    values = pd.to_numeric(np.array(text, dtype=object), errors="coerce").astype(float)
    not_a_number = np.array([value.lower() == "nan" for value in text])
    wrong |= np.isnan(values) & ~empty & ~not_a_number
    size = np.abs(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
    wrong |= size > _LARGEST
    if column.type == "int":
        wrong |= ~(np.array([_WHOLE.fullmatch(value) is not None for value in text]) | empty)
        lowest = 1 if column.name in _FROM_ONE or (file, column.name) == (EPOCHS_FILE, "epoch") else 0
        if column.name not in _SIGNED:
            wrong |= values < lowest
    elif column.needed:
        wrong |= not_a_number
    if column.name.endswith(_NOT_NEGATIVE):
        wrong |= (values < 0) | np.isinf(values) | (size > _LARGEST_MEASURED)
        wrong |= (size > 0) & (size < _SMALLEST_MEASURED)
    if column.name.endswith(_SHARES):
        wrong |= (values < 0) | (values > 1)
    if column.name == "schema_version":
        wrong |= values != SCHEMA_VERSION
    return values, wrong


def _wrong_words(text: Sequence[str], column: Column) -> Mask:
    if column.name in _WORDS:
        return np.array([value not in ("", *_WORDS[column.name]) for value in text])
    if column.name in JSON_COLUMNS:
        return np.array([not _is_json_object(value) for value in text])
    return np.array(["\0" in value for value in text])


def _is_json_object(text: str) -> bool:
    try:
        return text == "" or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _expected(column: Column) -> str:
    if column.name in _WORDS:
        return "one of " + ", ".join(_WORDS[column.name])
    if column.name in JSON_COLUMNS:
        return "a JSON object"
    if column.name == "schema_version":
        return f"{SCHEMA_VERSION}, the version of the format that this sltt-bench reads; a newer one needs an update"
    if column.name.endswith(_SHARES):
        return "a share from 0 to 1"
    return {
        "int": "a whole number that can have been measured",
        "float": "a number that can have been measured",
        "bool": "true or false",
        "str": "text",
    }[column.type]
