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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
"""In names of temporary files and folders."""
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

    What compilers, loader processes and plug-ins leave there when they are killed would stay for ever. Sockets have another
    one where its path is too long for them. Without effect where no folder can be made.
    """
    with ExitStack() as folders:
        folder = sockets = None
        with suppress(OSError):
            folder = sockets = folders.enter_context(_held_folder(tempfile.gettempdir()))
            if len(os.fsencode(folder)) > _LONGEST_OF_SOCKETS:
                sockets = folders.enter_context(_held_folder(_SHORT))
        if folder is None:
            yield
            return
        earlier = tempfile.tempdir, os.environ.get("TMPDIR"), folder_of_sockets()
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        keep_sockets_in(sockets)
        try:
            yield
        finally:
            tempfile.tempdir, variable, sockets = earlier
            keep_sockets_in(sockets)
            os.environ.pop("TMPDIR", None)
            if variable is not None:
                os.environ["TMPDIR"] = variable


_SHORT = "/tmp"
_LONGEST_OF_SOCKETS = 85
"""Bytes of the path of a folder for sockets: a socket's has 103 at most (macOS; Linux: 107), 18 of them for its name."""


@contextmanager
def _held_folder(place: str) -> Iterator[str]:
    """Yields a new folder that is removed afterwards, and that nobody takes for abandoned before. Raises OSError."""
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
    with new_held_file(Path(folder, _MARK)):
        try:
            yield folder
        finally:
            with suppress(OSError):
                _remove_folder_of(Path(folder, _MARK))


def folder_of_sockets() -> str | None:
    """Where multiprocessing keeps the sockets of this process; None: it makes a folder of its own when it needs one."""
    folder: str | None = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    return folder


def keep_sockets_in(folder: str | None) -> None:
    """Let multiprocessing keep the sockets of this process, and of those that it starts, in a folder (None: its own).

    It would keep one for the whole process, and remove that as the process ends.
    """
    multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]


def remove_abandoned_folders() -> None:
    """Remove the temporary folders of processes that were killed."""
    places = {_SHORT}
    with suppress(OSError):  # where no folder is for temporary files
        places.add(tempfile.gettempdir())
    for place in places:
        remove_abandoned(Path(place).glob(f"{_PREFIX}*/{_MARK}"), _remove_folder_of)


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
