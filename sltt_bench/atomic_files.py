"""The one way to write a file that is whole or not there at all, whenever the process ends or the power goes."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """What is written within takes the place of `path` when it is whole and on the disk, not before.

    Makes no folder: one that somebody moved away in the meantime would be there again. Raises OSError; an earlier file
    then stays as it was. Of several that write at once each writes the whole file, and the last one stays.
    """
    # No process number: those of two machines, or containers, that share a folder are often the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
