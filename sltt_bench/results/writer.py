"""Writes a run's folder: rows are appended and flushed as they occur, and nothing is overwritten."""

import csv
import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sltt_bench.common.abandoned import remove_abandoned
from sltt_bench.common.atomic_files import atomic_file
from sltt_bench.common.errors import UserError
from sltt_bench.common.format import format_bytes
from sltt_bench.common.printable import printable
from sltt_bench.common.yaml_text import dump_yaml
from sltt_bench.results.progress import progress_of
from sltt_bench.results.schema import (
    CELLS_FOLDER,
    CHECKPOINTS_FOLDER,
    FILES,
    JSON_COLUMNS,
    LOGS_FOLDER,
    PROVENANCE_FILE,
    RECIPE_FILE,
    SCHEMA_VERSION,
    TIMELINE_FILE,
    Column,
)


class ResultsError(UserError):
    """A results folder cannot be written; the message names the file and the remedy."""


def new_folder(parent: Path, prefix: str = "") -> Path:
    """Create a new folder below `parent`, named by the time and four random digits. Raises ResultsError.

    A taken name is drawn again: of a hundred cluster jobs that start in one second, two may draw the same.
    """
    while True:
        path = parent / f"{prefix}{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            taken = isinstance(error, FileExistsError)
            if taken and path.is_dir():
                continue
            why = "a file stands in its place" if taken else error
            raise ResultsError(f"{path}: cannot be made ({why}); choose another folder with --out") from None
        return path


class RunFolder:
    """`results/<recipe>/<run>/`, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Raises ResultsError if another process holds the folder or it cannot be written."""
        self.path = path
        try:
            for folder in (CELLS_FOLDER, LOGS_FOLDER, CHECKPOINTS_FOLDER):
                (path / folder).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock", timeout=0)
            self._lock.acquire()
            # Of whatever machine: the lock keeps others out.
            remove_abandoned([*path.glob(".*.tmp"), *path.glob("*/.*.tmp")])
            for log in (path / LOGS_FOLDER).glob("*.log"):
                if not log.stat().st_size:  # of a cell whose command was killed
                    log.unlink()
        except Timeout:
            raise ResultsError(
                f"{path}: another run is writing here; wait for it, or start a run of its own without --resume"
            ) from None
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            fault = getattr(error, "strerror", None) or error
            raise ResultsError(f"{path}: cannot be written ({fault}); {room(path)}") from None
        self._begun: set[Path] = set()
        self._of_cells: dict[str, bytes] = {}
        """cell_id → what provenance.json says of it, as it stands there."""

    @classmethod
    def create(cls, out: Path, recipe: str) -> "RunFolder":
        """Create a new folder below `out`/`recipe`, named by the time and four random digits."""
        return cls(new_folder(out / recipe))

    def close(self) -> None:
        """Release the folder for other processes."""
        self._lock.release()

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe, resolved without the grid's overrides; a resumed run keeps the first one."""
        if not (self.path / RECIPE_FILE).exists():
            write_atomically(self.path / RECIPE_FILE, dump_yaml(dict(recipe)).encode())

    def write_cell(self, cell: Mapping[str, Any]) -> Path:
        """Write the resolved cell as JSON for the process that runs it; returns the path."""
        path = self.path / CELLS_FOLDER / f"{cell['cell_id']}.json"
        write_atomically(path, _json(cell))
        return path

    def keeps_checkpoint(self, cell_id: str) -> bool:
        """Whether the command that tried a cell last was told to keep its checkpoint; True where no file says otherwise."""
        try:
            cell = json.loads((self.path / CELLS_FOLDER / f"{cell_id}.json").read_bytes())
            return cell["recipe"]["train"]["keep_checkpoint"] is not False
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def write_provenance(self, provenance: Mapping[str, Any], changed: str | None = None) -> None:
        """Replace provenance.json as a whole; it grows as cells report what they ran on.

        With `changed`, a cell_id, nothing else under `cells` has changed since the last call: what a run says of
        thousands of cells takes a third of a second to encode, beside one that is measured.
        """
        others, cells = dict(provenance), provenance.get("cells")
        if isinstance(cells, dict):
            others = {**{name: value for name, value in others.items() if name != "cells"}, "cells": {}}
            for cell_id in cells if changed is None else [changed]:
                self._of_cells[cell_id] = _json({cell_id: cells[cell_id]})[1:-2].replace(b"\n", b"\n ")
        content = _json(others)
        if self._of_cells:
            content = content.removesuffix(b"}\n}") + b",".join(self._of_cells.values()) + b"\n }\n}"
        write_atomically(self.path / PROVENANCE_FILE, content + b"\n")

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Append a row to cells.csv, epochs.csv, ... (a name in FILES).

        It is on disk when this returns, except in timeline.csv, which the system flushes later. Columns
        that `row` lacks stay empty. Raises KeyError for a column that the file does not have, ResultsError
        if the row cannot be written.
        """
        fields = as_fields(file, row)
        path = self.path / file
        try:
            self._begin(path, [*fields])
            _append_line(path, [*fields.values()], durable=file != TIMELINE_FILE)
        except OSError as error:
            self._begun.discard(path)  # the file may end in half a row
            raise ResultsError(
                f"{path}: a row could not be written ({error.strerror or error}); {room(path)}; "
                "then go on with --resume"
            ) from None

    def _begin(self, path: Path, columns: list[str]) -> None:
        """Write the header of a new file, or prepare an existing one for rows with the current columns."""
        if path in self._begun and path.exists():  # somebody may have moved it away since
            return
        if path.exists():
            set_torn_line_aside(path)
        if not path.exists() or path.stat().st_size == 0:
            _append_line(path, columns, durable=True)
        else:
            _add_columns(path, columns)
        self._begun.add(path)

    def log_path(self, cell_id: str, attempt: int) -> Path:
        """Returns where the output of a cell's process goes."""
        return self.path / LOGS_FOLDER / f"{cell_id}-{attempt}.log"

    def checkpoint_path(self, cell_id: str) -> Path:
        """Returns where the checkpoint of a cell goes."""
        return self.path / CHECKPOINTS_FOLDER / f"{cell_id}.pt"

    def check_version(self) -> None:
        """Raises ResultsError if the folder has rows of a newer version of the format.

        This version cannot read such rows, and would measure their cells again and add rows among them.
        """
        for file, version in progress_of(self.path).versions.items():
            if version > SCHEMA_VERSION:
                raise ResultsError(
                    f"{self.path / file}: its rows are of version {version} of the format, this sltt-bench writes version "
                    f"{SCHEMA_VERSION}; update it, or start a run of its own without --resume"
                )

    def rows(self, file: str, of_cell: str | None = None) -> list[dict[str, str]]:
        """Returns the rows that one of the folder's CSV files has so far, all or those of one cell; see `read_rows`."""
        return read_rows(self.path / file, of_cell)


def room(path: Path) -> str:
    """Returns a remedy for a refused write, with the free space on the file's disk."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return "see to the folder"
    return f"{format_bytes(free)} are free on its disk: make room, or see to the folder's rights and quota"


def read_provenance(run: Path) -> dict[str, Any]:
    """Returns provenance.json of a run's folder; an empty dict if it is missing or no JSON object."""
    try:
        content = json.loads((run / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def provenance_fault(provenance: Mapping[str, Any]) -> str | None:
    """Returns why nothing can be added to the provenance of earlier commands, or None.

    Somebody may have edited the file.
    """
    commands, cells = provenance.get("commands", []), provenance.get("cells", {})
    if not isinstance(commands, list):
        return "commands is no list"
    if not isinstance(cells, dict):
        return "cells is no mapping"
    for cell_id, entry in cells.items():
        attempts = entry.get("attempts", {}) if isinstance(entry, dict) else None
        if not isinstance(attempts, dict) or not all(
            number.isdecimal() and isinstance(noted, dict) for number, noted in attempts.items()
        ):
            return f"cells.{cell_id}.attempts is no mapping of numbers"
    return None


def as_fields(file: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the text of every column of a row. Raises KeyError for a column that the file does not have."""
    columns = FILES[file]
    unknown = set(row) - {column.name for column in columns}
    if unknown:
        raise KeyError(f"{file} has no column {', '.join(sorted(unknown))}")
    return {column.name: _as_text(row.get(column.name), column) for column in columns}


def read_rows(path: Path, of_cell: str | None = None) -> list[dict[str, str]]:
    """Returns the sound rows of a CSV file as text, all or those of one cell, in order; none if there is no file."""
    from sltt_bench.results import tables  # here, since it loads pandas, which writers do not need

    return tables.read_rows(path, [], of_cell=of_cell)


def set_torn_line_aside(path: Path) -> None:
    """Move an unfinished last line (of a crash) into `<file>.torn`, so that no row is appended to it."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.with_name(path.name + ".torn").open("ab") as torn:
                torn.write(content[whole:] + b"\n")
            file.truncate(whole)


def _add_columns(path: Path, columns: list[str]) -> None:
    """Add the columns that a file of an earlier version lacks, empty; its rows keep their values.

    Raises ResultsError if it is no such file, since rows of this program do not belong there.
    """
    from sltt_bench.results import tables

    content = path.read_bytes()
    header, *lines = content.removesuffix(b"\n").split(b"\n")
    if header.decode("utf-8", "replace").split(",") == columns:
        return
    damage: list[tables.Skipped] = []
    rows = dict(tables.whole_lines(path, damage))
    fault = tables.header_fault(path.name, rows[1]) if 1 in rows else damage[0].reason
    if fault is None and (unknown := sorted(set(rows[1]) - set(columns))):
        fault = f"column {unknown[0]} is unknown here"
    if fault is not None:
        raise ResultsError(
            f"{path}: {fault}; mend its first line, or start a run of its own without --resume"
        )
    new = [_line(columns)]
    for number, line in enumerate(lines, start=2):
        fields = rows.get(number, [])
        if len(fields) != len(rows[1]):  # a damaged line stays as it is; no reader takes it for a row
            new.append(line + b"\n")
            continue
        values = dict(zip(rows[1], fields, strict=True))
        new.append(_line([values.get(column, "") for column in columns]))
    write_atomically(path, b"".join(new))


def _json(content: Mapping[str, Any]) -> bytes:
    """Returns JSON that people can read; bytes that are not UTF-8 are escaped and read back unchanged."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode(errors="backslashreplace")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there at all. Raises ResultsError."""
    with atomic_result(path) as file:
        file.write(content)


@contextmanager
def atomic_result(path: Path) -> Iterator[BinaryIO]:
    """Write an `atomic_file` among the results. Raises ResultsError, which says how much room is left."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise ResultsError(
            f"{path}: could not be written ({error.strerror or error}); {room(path)}"
        ) from None


def _append_line(path: Path, values: list[str], *, durable: bool) -> None:
    """Append a whole line at once; `durable` waits for the disk, too slow for many samples a second."""
    content = _line(values)
    with path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)  # half a row is worth nothing
            raise


def _line(values: list[str]) -> bytes:
    """Returns a row as a line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode()


def _as_text(value: Any, column: Column) -> str:
    if value is None:
        return ""
    if column.type == "bool":
        return "true" if value else "false"
    if column.type == "int":
        return str(int(value))
    if column.type == "float":
        return repr(float(value))
    if column.name in JSON_COLUMNS:
        return str(value)
    return printable(" ".join(str(value).split()))
