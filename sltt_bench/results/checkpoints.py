"""Checkpoints: everything that a training run needs to go on as if it had not stopped."""

from pathlib import Path
from typing import Any

import torch

from sltt_bench.results.writer import ResultsError, atomic_result, room


class CheckpointError(Exception):
    """A checkpoint cannot be read; the message names the file and the remedy."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays until the new one is whole. Raises ResultsError."""
    try:
        with atomic_result(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's own writer found the disk full
        raise ResultsError(
            f"{path}: could not be written ({str(error).splitlines()[0]}); {room(path)}"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this tool as weights and plain values only. Raises CheckpointError."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({first_line}); delete it to start the cell anew"
        ) from None
    return state
