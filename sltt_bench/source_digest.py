"""Which code ran: digests of source, this package's and a plug-in's.

A commit says it only of a tree without changes, and only if the checkout's commit is that of its files.
"""

import hashlib
import sys
from functools import cache
from pathlib import Path

import sltt_bench


@cache
def own_source_sha256() -> str:
    """That of sltt-bench, found out once in a process: what changes meanwhile runs in processes that start later."""
    return source_sha256(Path(sltt_bench.__file__).parent)


def source_sha256(code: Path) -> str:
    """What tells the source of a package (its folder) or module (its file) from every other. Raises OSError.

    In the folder above it, `find NAME -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum` says the same.
    """
    files = code.rglob("*.py") if code.is_dir() else [code]
    names = {file.relative_to(code.parent).as_posix(): file for file in files}
    lines = (f"{hashlib.sha256(names[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_of_module(name: str) -> Path | None:
    """Where the source of an imported module's topmost package lies, or its own; None if that is no one place."""
    top = sys.modules.get(name.partition(".")[0])
    folders = list(getattr(top, "__path__", []))
    places = folders or [file for file in (getattr(top, "__file__", None),) if file is not None]
    return Path(places[0]) if len(places) == 1 else None
