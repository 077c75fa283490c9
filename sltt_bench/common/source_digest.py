"""Identifies the code that ran by digests of the source of this package and of plug-ins.

A commit identifies it only if the working tree has no changes and the checkout's commit is that of its files.
"""

import hashlib
import sys
from functools import cache
from pathlib import Path

import sltt_bench


@cache
def own_source_sha256() -> str:
    """Returns the digest of sltt-bench; computed once, since later changes do not affect this process."""
    return source_sha256(Path(sltt_bench.__file__).parent)


def source_sha256(code: Path) -> str:
    """Returns a digest of the source of a package (its folder) or module (its file). Raises OSError.

    `find NAME -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum` in the parent folder gives the
    same.
    """
    files = code.rglob("*.py") if code.is_dir() else [code]
    names = {file.relative_to(code.parent).as_posix(): file for file in files}
    lines = (f"{hashlib.sha256(names[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_of_module(name: str) -> Path | None:
    """Returns the folder of an imported module's topmost package, or the file of a single module.

    None if it is not exactly one place.
    """
    top = sys.modules.get(name.partition(".")[0])
    folders = list(getattr(top, "__path__", []))
    places = folders or [file for file in (getattr(top, "__file__", None),) if file is not None]
    return Path(places[0]) if len(places) == 1 else None
