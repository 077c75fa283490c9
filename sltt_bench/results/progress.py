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
    epochs: Mapping[str, int]
    """cell_id → how many of its epochs have a row."""
    damage: "tuple[Skipped, ...]"
    """Rows that cannot be read, each with the reason."""
    versions: Mapping[str, int]
    """File → the newest version of the format that one of its rows names, read or not."""


NOTHING = Progress(frozenset(), {}, {}, (), {})
"""How far a run has come that has not begun."""


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
    import pandas as pd  # here, since help would wait for it

    from sltt_bench.results import tables

    damage: list[tables.Skipped] = []
    read, versions = tables.Tables(damage), {}
    for file in (CELLS_FILE, EPOCHS_FILE):
        if (folder / file).exists():
            lines = tables.whole_lines(folder / file, damage)
            read.add(folder / file, lines)
            versions[file] = _newest_version([fields for _, fields in lines])
    cells, epochs = read.frame(CELLS_FILE), read.frame(EPOCHS_FILE)
    attempts = pd.concat([rows[["cell_id", "attempt"]] for rows in (cells, epochs)]).groupby("cell_id")[
        "attempt"
    ]
    there = epochs.groupby("cell_id")["epoch"].nunique()
    ok = cells[cells["status"] == "ok"]
    whole = ok["cell_id"].map(there).fillna(0) >= ok["epochs_done"].fillna(0)
    return Progress(
        finished=frozenset(ok["cell_id"][whole]),
        attempts={str(cell_id): int(attempt) for cell_id, attempt in attempts.max().items()},
        epochs={str(cell_id): int(count) for cell_id, count in there.items()},
        damage=tuple(damage),
        versions=versions,
    )


def _newest_version(lines: list[list[str]]) -> int:
    """Returns the largest schema_version of lines of which the first names the columns; 0 if there is none."""
    if not lines or "schema_version" not in lines[0]:
        return 0
    column = lines[0].index("schema_version")
    texts = {fields[column] for fields in lines[1:] if len(fields) > column}
    return max((int(text) for text in texts if text.isdecimal()), default=0)
