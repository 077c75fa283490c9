"""Saves and loads checkpoints, from which a training run goes on as if it had not stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sltt_bench.common.tensor_files import load_tensors
from sltt_bench.results.writer import ResultsError, atomic_result, room


class CheckpointError(Exception):
    """A checkpoint cannot be read; the message names the file and the remedy."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the previous one stays until the new one is complete. Raises ResultsError."""
    try:
        with atomic_result(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's own writer found the disk full
        raise ResultsError(
            f"{path}: could not be written ({str(error).splitlines()[0]}); {room(path)}"
        ) from None


def load(path: Path, *, of_cell: str) -> dict[str, Any]:
    """Read the checkpoint of a cell as weights and plain values only. Raises CheckpointError."""
    with restoring(path):
        state: dict[str, Any] = load_tensors(path)
        cell_id = state.get("cell_id", of_cell)  # earlier versions had it in the file's name only
    if cell_id != of_cell:
        raise CheckpointError(
            f"{path}: the checkpoint of another cell, {cell_id}; delete it to start the cell anew"
        )
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn any error within into a CheckpointError about the file at `path`."""
    try:
        yield
    except Exception as error:  # a damaged file makes torch raise nearly anything
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({first_line}); delete it to start the cell anew"
        ) from None
