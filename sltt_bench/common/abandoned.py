"""Removes temporary files and folders that a killed process left, and none of a living one.

Who makes one locks it, or a file in it. The system takes the lock back when the last process that has the file open
ends, whatever ends it. Some shared file systems show a lock to no other machine: so that names hold
that of the machine, and each machine removes its own.
"""

import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
"""In names of temporary files and folders; short, since a socket's path has about a hundred characters at most."""
_PREFIX, _MARK = f"sltt-bench-{MACHINE}-", ".in-use"
"""Names of temporary folders, and of the file in each that is locked."""


def new_held_file(path: Path) -> BinaryIO:
    """Returns a new file that nobody takes for abandoned as long as it is open, where the file system knows locks.

    Raises OSError.
    """
    while True:
        file = path.open("wb")
        _lock(file)
        if path.exists():  # else somebody took it for abandoned before it was locked
            return file
        file.close()


def _lock(file: BinaryIO) -> None:
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def remove_abandoned(files: Iterable[Path], remove: Callable[[Path], object] = Path.unlink) -> None:
    """Call `remove` with each of the files that nobody holds; what cannot be locked or removed stays."""
    for path in files:
        with suppress(OSError):
            _remove_unless_held(path, remove)


def _remove_unless_held(path: Path, remove: Callable[[Path], object]) -> None:
    """Raises OSError."""
    if sys.platform == "win32":  # which removes no open file
        remove(path)
        return
    # Open for writing, since some file systems lock no other.
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path)
    finally:
        os.close(descriptor)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Let this process, and those that it starts, put temporary files into a folder that is removed with them.

    What compilers, loader processes and plug-ins leave there when they are killed would stay for ever. Without effect
    where no folder can be made.
    """
    earlier = tempfile.tempdir, os.environ.get("TMPDIR")
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        held = new_held_file(Path(folder, _MARK))
    except OSError:
        yield
        return
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    # multiprocessing keeps a folder in it for the whole process, and would remove that as the process ends.
    of_process = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    sockets = of_process.get("tempdir")
    of_process["tempdir"] = folder
    try:
        yield
    finally:
        of_process["tempdir"] = sockets
        tempfile.tempdir, variable = earlier
        os.environ.pop("TMPDIR", None)
        if variable is not None:
            os.environ["TMPDIR"] = variable
        with suppress(OSError):
            _remove_folder_of(Path(folder, _MARK))
        held.close()


def remove_abandoned_folders() -> None:
    """Remove the temporary folders of processes that were killed."""
    marks = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_MARK}")
    remove_abandoned(marks, _remove_folder_of)


def _remove_folder_of(mark: Path) -> None:
    """Remove a temporary folder, its mark last: a process that is about to end may still write there, and what it leaves
    is then found again. Raises OSError.
    """
    for path in mark.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != mark:
            path.unlink()
    shutil.rmtree(mark.parent)
