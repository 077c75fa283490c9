"""Writes a file that is complete or not there at all, whenever the process ends or the power fails."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sltt_bench.common.abandoned import MACHINE, new_held_file, remove_abandoned


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` once it is complete and on the disk, not before.

    Creates no folder, since that would bring back one that somebody moved away in the meantime. Raises
    OSError; an earlier file then stays as it was. Of several concurrent writers, the last one's whole file
    stays. A writer that is killed leaves a hidden file, which `remove_unfinished` removes.
    """
    # No process number, since machines or containers that share a folder often have equal ones.
    temporary = path.with_name(f".{path.name}.{MACHINE}.{secrets.token_hex(8)}.tmp")
    try:
        with new_held_file(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # which renames no open file
                temporary.replace(
                    path
                )  # while it is held: else another writer's `remove_unfinished` may come between
        if sys.platform == "win32":
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(*folders: Path) -> None:
    """Remove from folders what writers on this machine left that were killed; files of living ones stay."""
    for folder in folders:
        remove_abandoned(folder.glob(f".*.{MACHINE}.*.tmp"))
