"""Removes temporary files and folders that a killed process left, and none of a living one.

Who makes one locks it. The system takes the lock back when the last process that has it open ends, whatever ends it.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def hold(descriptor: int) -> None:
    """Lock an open file or folder as long as it is open; without effect where the file system knows no locks."""
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove those of the files and folders that nobody holds; what cannot be locked or removed stays."""
    for path in paths:
        with suppress(OSError):
            _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    """Raises OSError."""
    if sys.platform == "win32":  # which removes no open file
        path.unlink()
        return
    is_folder = path.is_dir()
    # A file is opened for writing, since some file systems lock no other.
    descriptor = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)
