"""Says how far the cells of a run's folder have come: which finished, and what cannot be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sltt_bench.results.schema import CELLS_FILE, EPOCHS_FILE

if TYPE_CHECKING:
    from sltt_bench.results.tables import Skipped


@dataclass(frozen=True)
class Progress:
    """What cells.csv and epochs.csv of a run's folder say."""

    finished: frozenset[str]
    """The cells that are ok, with all their epochs."""
    attempts: Mapping[str, int]
    """cell_id → its last attempt that left a row."""
    with_epochs: frozenset[str]
    """The cells of which an epoch is there, finished or not."""
    damage: "tuple[Skipped, ...]"
    """Rows that cannot be read, each with the reason."""
    versions: Mapping[str, int]
    """File → the newest version of the format that one of its rows names, read or not."""


def progress_of(folder: Path) -> Progress:
    """Returns how far a run has come; its files are read again only after they have changed.

    A resumed run asks several times, and epochs.csv may have a hundred thousand rows.
    """
    return _progress(folder, tuple(_state(folder / file) for file in (CELLS_FILE, EPOCHS_FILE)))


def _state(path: Path) -> tuple[int, ...]:
    """Returns what changes whenever a row is appended or the file is replaced; empty if there is none."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return (state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _progress(folder: Path, states: tuple[tuple[int, ...], ...]) -> Progress:
    from sltt_bench.results import tables  # here, since it loads pandas, for which help would wait

    damage: list[tables.Skipped] = []
    read, versions = tables.Tables(damage), {}
    for file in (CELLS_FILE, EPOCHS_FILE):
        if (folder / file).exists():
            lines = tables.whole_lines(folder / file, damage)
            read.add(folder / file, lines)
            versions[file] = _newest_version([fields for _, fields in lines])
    cells, epochs = read.frame(CELLS_FILE), read.frame(EPOCHS_FILE)
    ok = cells[cells["status"] == "ok"]
    there = epochs.groupby("cell_id")["epoch"].nunique().reindex(ok["cell_id"], fill_value=0)
    attempts: dict[str, int] = {}
    for rows in (cells, epochs):
        for cell_id, attempt in rows.groupby("cell_id")["attempt"].max().items():
            attempts[str(cell_id)] = max(int(attempt), attempts.get(str(cell_id), 0))
    return Progress(
        frozenset(ok["cell_id"][there.to_numpy() >= ok["epochs_done"].fillna(0).to_numpy()]),
        attempts,
        frozenset(epochs["cell_id"]),
        tuple(damage),
        versions,
    )


def _newest_version(lines: list[list[str]]) -> int:
    """Returns the largest schema_version of lines of which the first names the columns; 0 if there is none."""
    if not lines or "schema_version" not in lines[0]:
        return 0
    column = lines[0].index("schema_version")
    texts = {fields[column] for fields in lines[1:] if len(fields) > column}
    return max((int(text) for text in texts if text.isdecimal()), default=0)
